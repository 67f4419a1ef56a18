//! Any protobuf message as a tree of fields, without knowing what it is: taken apart, changed somewhere, put together again.

use super::Random;
use crate::PAGE_SIZE;

/// How deep messages lie in one another, at most.
const DEPTH: usize = 8;
/// Field numbers that are made up, at most.
const NUMBERS: u64 = 40;
/// A sequence that is copied becomes no longer than this.
const LONGEST: usize = 1 << 16;

/// Numbers at which something changes.
const EDGES: [u64; 22] = [
    0,
    1,
    2,
    9,
    19,
    64,
    65,
    PAGE_SIZE - 1,
    PAGE_SIZE,
    0xffff,
    1 << 20,
    (1 << 22) + 1,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 40,
    0x7fff_ffff_f000,
    0x8000_0000_0000,
    0x7fff_ffff_ffff_f000,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_ffff_f000,
    u64::MAX,
];

#[derive(Clone, Debug)]
enum Value {
    Varint(u64),
    Fixed64([u8; 8]),
    Fixed32([u8; 4]),
    Bytes(Vec<u8>),
    Message(Vec<Field>),
}

#[derive(Clone, Debug)]
struct Field {
    number: u64,
    value: Value,
}

/// A message.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    fields: Vec<Field>,
}

impl Tree {
    /// What is no message at all becomes an empty one.
    pub(super) fn parse(bytes: &[u8]) -> Self {
        Self { fields: message(bytes, DEPTH).unwrap_or_default() }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_message(&mut out, &self.fields);
        out
    }

    /// Changes one place.
    pub(super) fn change(&mut self, random: &mut Random) {
        let count = count(&self.fields);
        let mut left = random.place(count);
        let other = nth(&self.fields, &mut random.place(count)).cloned();
        at_nth(&mut self.fields, &mut left, &mut |fields, place| {
            alter(fields, place, other.as_ref(), random)
        });
    }
}

fn count(fields: &[Field]) -> usize {
    let inside = |field: &Field| if let Value::Message(fields) = &field.value { count(fields) } else { 0 };
    fields.iter().map(|field| 1 + inside(field)).sum()
}

fn nth<'a>(fields: &'a [Field], left: &mut usize) -> Option<&'a Field> {
    for field in fields {
        if *left == 0 {
            return Some(field);
        }
        *left -= 1;
        if let Value::Message(inner) = &field.value
            && let Some(found) = nth(inner, left)
        {
            return Some(found);
        }
    }
    None
}

/// Calls `work` with the fields among which the one with that number, counted in depth, stands, and its place. `true` when found.
fn at_nth(fields: &mut Vec<Field>, left: &mut usize, work: &mut impl FnMut(&mut Vec<Field>, usize)) -> bool {
    for place in 0..fields.len() {
        if *left == 0 {
            work(fields, place);
            return true;
        }
        *left -= 1;
        if let Value::Message(inner) = &mut fields[place].value
            && at_nth(inner, left, work)
        {
            return true;
        }
    }
    false
}

fn alter(fields: &mut Vec<Field>, place: usize, other: Option<&Field>, random: &mut Random) {
    match random.below(12) {
        0 => drop(fields.remove(place)),
        1 => {
            let copy = fields[place].clone();
            fields.insert(place, copy);
        }
        2 => {
            let second = random.place(fields.len());
            fields.swap(place, second);
        }
        3 => {
            if let Some(other) = other {
                fields[place].value = other.value.clone();
            }
        }
        4 => fields.extend(other.cloned()),
        5 => fields.push(Field { number: 1 + random.below(NUMBERS), value: Value::Varint(number(random)) }),
        _ => alter_value(&mut fields[place].value, random),
    }
}

fn number(random: &mut Random) -> u64 {
    match random.below(4) {
        0 => random.next(),
        1 => random.below(8) * PAGE_SIZE,
        _ => EDGES[random.place(EDGES.len())],
    }
}

fn near(value: u64, random: &mut Random) -> u64 {
    match random.below(7) {
        0 => value.wrapping_add(1),
        1 => value.wrapping_sub(1),
        2 => value.wrapping_add(PAGE_SIZE),
        3 => value.wrapping_sub(PAGE_SIZE),
        4 => value ^ (1 << random.below(64)),
        _ => number(random),
    }
}

fn alter_value(value: &mut Value, random: &mut Random) {
    match value {
        Value::Varint(number) => *number = near(*number, random),
        Value::Fixed64(bytes) => *bytes = near(u64::from_le_bytes(*bytes), random).to_le_bytes(),
        Value::Fixed32(bytes) => {
            let changed = near(u32::from_le_bytes(*bytes).into(), random).to_le_bytes();
            bytes.copy_from_slice(&changed[..4]);
        }
        Value::Bytes(bytes) => alter_bytes(bytes, random),
        Value::Message(fields) => {
            if random.below(2) == 0 {
                fields.clear();
            } else {
                fields.reverse();
            }
        }
    }
}

fn alter_bytes(bytes: &mut Vec<u8>, random: &mut Random) {
    let place = random.place(bytes.len());
    let byte = random.next().to_le_bytes()[0];
    match random.below(7) {
        0 => bytes.clear(),
        1 => bytes.truncate(place),
        2 => bytes.push(byte),
        3 if bytes.len() < LONGEST => bytes.extend_from_within(..),
        4 => *bytes = b"/../".to_vec(),
        5 => bytes.insert(place, 0),
        _ => bytes.get_mut(place).into_iter().for_each(|old| *old = byte),
    }
}

fn message(mut rest: &[u8], depth: usize) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    while !rest.is_empty() {
        let key = varint(&mut rest)?;
        let value = match key & 7 {
            0 => Value::Varint(varint(&mut rest)?),
            1 => Value::Fixed64(*take(&mut rest, 8)?.first_chunk()?),
            2 => {
                let length = usize::try_from(varint(&mut rest)?).ok()?;
                delimited(take(&mut rest, length)?, depth)
            }
            5 => Value::Fixed32(*take(&mut rest, 4)?.first_chunk()?),
            _ => return None,
        };
        fields.push(Field { number: key >> 3, value });
    }
    Some(fields)
}

/// A message if it can be read as one and written again as it was, else plain bytes.
fn delimited(bytes: &[u8], depth: usize) -> Value {
    let inner = if depth == 0 || bytes.is_empty() { None } else { message(bytes, depth - 1) };
    let same = |fields: &Vec<Field>| {
        let mut again = Vec::new();
        put_message(&mut again, fields);
        again == bytes
    };
    inner.filter(same).map_or_else(|| Value::Bytes(bytes.to_vec()), Value::Message)
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (content, behind) = rest.split_at_checked(length)?;
    *rest = behind;
    Some(content)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let byte = take(rest, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

fn put_message(out: &mut Vec<u8>, fields: &[Field]) {
    for field in fields {
        let key = field.number << 3;
        match &field.value {
            Value::Varint(value) => {
                put_varint(out, key);
                put_varint(out, *value);
            }
            Value::Fixed64(bytes) => {
                put_varint(out, key | 1);
                out.extend_from_slice(bytes);
            }
            Value::Fixed32(bytes) => {
                put_varint(out, key | 5);
                out.extend_from_slice(bytes);
            }
            Value::Bytes(bytes) => put_delimited(out, key, bytes),
            Value::Message(fields) => {
                let mut inner = Vec::new();
                put_message(&mut inner, fields);
                put_delimited(out, key, &inner);
            }
        }
    }
}

fn put_delimited(out: &mut Vec<u8>, key: u64, bytes: &[u8]) {
    put_varint(out, key | 2);
    put_varint(out, u64::try_from(bytes.len()).unwrap_or(0));
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_written_again_as_it_was() {
        let file = crate::sample::image().encode().expect("the sample makes sense");
        for frame in crate::container::frames(&file).expect("its frames") {
            let tree = Tree::parse(frame.payload);
            assert!(count(&tree.fields) > 0 && tree.encode() == frame.payload, "record {}", frame.kind);
        }
    }
}
