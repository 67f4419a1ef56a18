//! What the end of a process gives back to semaphores (SEM_UNDO). The kernel shows it to nobody, but it keeps it within bounds: an
//! operation that would leave them is an error of its own (ERANGE). So the process itself tries operations that can never succeed, since
//! their last part cannot: which of two errors it gets tells on which side of a number the adjustment lies. Nothing is ever changed by
//! it: the kernel carries out all parts of an operation or none, and looks at them one by one.

use rewake_image::records::{SemaphoreSet, SemaphoreUndo};
use rewake_linux::program::{Accept, CallRef, Program, Sysno, TrackRef};

use crate::error::{CaptureError, During, Result};
use crate::freeze::Frozen;

/// What an adjustment can be.
const LEAST: i32 = -32_768;
const MOST: i32 = 32_767;
const SEM_UNDO: i16 = 0x1000;
const IPC_NOWAIT: i16 = 0o4000;
/// Takes away more than any semaphore has.
const IMPOSSIBLE: i32 = -32_768;

/// A semaphore whose adjustment is looked for.
#[derive(Clone, Debug)]
struct Search {
    set: i32,
    place: u16,
    value: i32,
    low: i32,
    high: i32,
}

/// One side of a number.
#[derive(Clone, Copy, Debug)]
enum Side {
    /// Is it this or more (0 at most)?
    AtLeast(i32),
    /// Is it this or less (0 at least)?
    AtMost(i32),
}

impl Search {
    /// The question that halves what is left.
    const fn next(&self) -> Side {
        if self.high <= 0 {
            Side::AtLeast((self.low + self.high + 1) >> 1)
        } else {
            Side::AtMost((self.low + self.high) >> 1)
        }
    }

    fn learn(&mut self, side: Side, yes: bool) {
        match (side, yes) {
            (Side::AtLeast(number), true) => self.low = self.low.max(number),
            (Side::AtLeast(number), false) => self.high = self.high.min(number - 1),
            (Side::AtMost(number), true) => self.high = self.high.min(number),
            (Side::AtMost(number), false) => self.low = self.low.max(number + 1),
        }
    }

    /// `struct sembuf`s that fail in one way or the other. What is not undone moves the value, so that it stays within its own bounds.
    fn operations(&self, side: Side) -> Vec<u8> {
        let mut parts: Vec<(i32, i16)> = vec![(-self.value, 0)];
        match side {
            Side::AtLeast(number) => {
                let mut rest = number - LEAST;
                if rest > MOST {
                    parts.extend([(MOST, SEM_UNDO), (-MOST, 0)]);
                    rest -= MOST;
                }
                parts.push((rest, SEM_UNDO));
            }
            Side::AtMost(number) => parts.extend([(MOST, 0), (number - MOST, SEM_UNDO)]),
        }
        parts.retain(|(number, _)| *number != 0);
        parts.push((IMPOSSIBLE, 0));
        let mut bytes = Vec::with_capacity(parts.len() * 6);
        for (number, flags) in parts {
            bytes.extend(self.place.to_le_bytes());
            bytes.extend(i16::try_from(number).unwrap_or(i16::MIN).to_le_bytes());
            bytes.extend((flags | IPC_NOWAIT).to_le_bytes());
        }
        bytes
    }

    fn ask(&self, program: &mut Program, track: TrackRef, side: Side) -> CallRef {
        let operations = self.operations(side);
        let count = u64::try_from(operations.len() / 6).unwrap_or(0);
        let operations = program.bytes(&operations);
        let args = [self.set.into(), operations.into(), count.into()];
        program.call(track, Sysno::semop, args).accept(Accept::Any).note("adjustment of a semaphore").done()
    }
}

impl Frozen {
    /// What its end gives back to these sets, whose values are as they say.
    ///
    /// # Errors
    /// When it cannot be asked, or gets another answer than one of the two.
    pub(crate) fn semaphore_undo(&mut self, sets: &[SemaphoreSet]) -> Result<Vec<SemaphoreUndo>> {
        let mut open: Vec<Search> = sets.iter().flat_map(searches).collect();
        let mut known: Vec<Search> = Vec::new();
        // Most are 0, which two questions tell.
        let mut first = true;
        while !open.is_empty() {
            let asked: Vec<(Search, Vec<Side>)> = open
                .drain(..)
                .map(|search| {
                    let sides =
                        if first { vec![Side::AtLeast(0), Side::AtMost(0)] } else { vec![search.next()] };
                    (search, sides)
                })
                .collect();
            first = false;
            for search in self.try_out(asked)? {
                match search.low.cmp(&search.high) {
                    std::cmp::Ordering::Equal => known.push(search),
                    std::cmp::Ordering::Less => open.push(search),
                    std::cmp::Ordering::Greater => return Err(self.no_answer(search.set, 0)),
                }
            }
        }
        Ok(records(known))
    }

    fn try_out(&mut self, asked: Vec<(Search, Vec<Side>)>) -> Result<Vec<Search>> {
        let Some(&tid) = self.threads.keys().next() else { return Ok(Vec::new()) };
        let mut program = Program::new();
        let track = program.track(format!("thread {tid}"));
        let calls: Vec<Vec<CallRef>> = asked
            .iter()
            .map(|(search, sides)| sides.iter().map(|side| search.ask(&mut program, track, *side)).collect())
            .collect();
        let maps = self.proc.maps().during("read", self.proc.id(), "maps")?;
        let outcome = self.run(&program, &[(track, tid)], &maps)?;
        let mut told = Vec::new();
        for ((mut search, sides), calls) in asked.into_iter().zip(calls) {
            let mut permitted = true;
            for (side, call) in sides.into_iter().zip(calls) {
                match i32::try_from(-outcome.result(call)) {
                    Ok(libc::EAGAIN) => search.learn(side, true),
                    Ok(libc::ERANGE) => search.learn(side, false),
                    // Who may not change it has nothing to give back to it.
                    Ok(libc::EACCES | libc::EPERM | libc::EINVAL | libc::EIDRM) => permitted = false,
                    _ => return Err(self.no_answer(search.set, outcome.result(call))),
                }
            }
            if permitted {
                told.push(search);
            }
        }
        Ok(told)
    }

    fn no_answer(&self, set: i32, result: i64) -> CaptureError {
        let text = format!("what its end gives back cannot be learned: semop returned {result}");
        CaptureError::failed("ask", self.proc.id(), format!("System V semaphores {set}"), text)
    }
}

fn searches(set: &SemaphoreSet) -> impl Iterator<Item = Search> {
    let id = set.object.map_or(-1, |object| object.id);
    (0u16..).zip(&set.values).map(move |(place, value)| Search {
        set: id,
        place,
        value: i32::try_from(*value).unwrap_or(0),
        low: LEAST,
        high: MOST,
    })
}

fn records(mut known: Vec<Search>) -> Vec<SemaphoreUndo> {
    known.retain(|search| search.low != 0);
    known.sort_by_key(|search| (search.set, search.place));
    let mut records: Vec<SemaphoreUndo> = Vec::new();
    for Search { set, place, low, .. } in known {
        if records.last().is_none_or(|last| last.set != set) {
            records.push(SemaphoreUndo { set, ..SemaphoreUndo::default() });
        }
        if let Some(record) = records.last_mut() {
            record.semaphores.push(place.into());
            record.adjustments.push(low);
        }
    }
    records
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel does: whether an operation leaves the bounds of an adjustment before it comes to its impossible end.
    fn in_bounds(bytes: &[u8], mut value: i32, mut adjustment: i32) -> bool {
        let number = |bytes: &[u8]| i32::from(i16::from_le_bytes([bytes[0], bytes[1]]));
        for part in bytes.chunks(6) {
            let operation = number(&part[2..]);
            value += operation;
            if value < 0 {
                assert_eq!(operation, IMPOSSIBLE, "the last part alone is impossible");
                return true;
            }
            assert!(value <= MOST);
            if number(&part[4..]) & i32::from(SEM_UNDO) != 0 {
                adjustment -= operation;
                if !(LEAST..=MOST).contains(&adjustment) {
                    return false;
                }
            }
        }
        panic!("the operation would have succeeded");
    }

    #[test]
    fn every_adjustment_is_found() {
        for value in [0, 1, 77, MOST] {
            for adjustment in [LEAST, LEAST + 1, -300, -1, 0, 1, 5, 299, MOST - 1, MOST] {
                let mut search = Search { set: 0, place: 0, value, low: LEAST, high: MOST };
                let mut sides = vec![Side::AtLeast(0), Side::AtMost(0)];
                let mut questions = 0;
                while search.low != search.high {
                    for side in std::mem::take(&mut sides) {
                        let yes = in_bounds(&search.operations(side), value, adjustment);
                        search.learn(side, yes);
                        questions += 1;
                    }
                    sides = vec![search.next()];
                }
                assert_eq!(search.low, adjustment, "at value {value}");
                assert!(questions <= 17, "{questions} questions");
            }
        }
    }
}
