//! A look at an encoded record before it is decoded: a thread takes two bytes in a file and some hundred in memory, so a small hostile
//! file could make the decoder allocate a lot. The messages that are large and many are counted first.

use crate::ImageError;
use crate::check::{MAX_MESSAGES, MAX_THREADS, MAX_VMAS, invalid};
use crate::records::RecordKind;

/// Field numbers in records.proto.
const PROCESS_THREADS: u64 = 20;
const PROCESS_MEMORY: u64 = 23;
const MEMORY_VMAS: u64 = 3;
const SOCKET_QUEUE: u64 = 10;

/// Refuses a record with more threads, mappings or messages than there can be. What is no valid encoding is left to the decoder.
pub(crate) fn check_counts(kind: RecordKind, payload: &[u8]) -> Result<(), ImageError> {
    if kind == RecordKind::UnixSocket {
        let count = Fields { rest: payload }.filter(|(field, _)| *field == SOCKET_QUEUE).count();
        if count > MAX_MESSAGES {
            let detail = format!("{count} messages, at most {MAX_MESSAGES} are possible");
            return Err(invalid(kind.name(), detail));
        }
    }
    if kind != RecordKind::Process {
        return Ok(());
    }
    let (mut threads, mut vmas) = (0, 0);
    for (field, content) in (Fields { rest: payload }) {
        match field {
            PROCESS_THREADS => threads += 1,
            PROCESS_MEMORY => {
                vmas += Fields { rest: content }.filter(|(field, _)| *field == MEMORY_VMAS).count();
            }
            _ => (),
        }
    }
    for (name, count, most) in [("threads", threads, MAX_THREADS), ("mappings", vmas, MAX_VMAS)] {
        if count > most {
            return Err(invalid(kind.name(), format!("{count} {name}, at most {most} are possible")));
        }
    }
    Ok(())
}

/// The fields of an encoded message with their numbers, up to the first that is no valid encoding. Only length-delimited ones have a
/// content.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let key = self.varint()?;
        let length = match key & 7 {
            0 => {
                self.varint()?;
                0
            }
            1 => 8,
            2 => usize::try_from(self.varint()?).ok()?,
            5 => 4,
            _ => return None,
        };
        let (content, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some((key >> 3, content))
    }
}

impl Fields<'_> {
    /// Seven bits a byte, the lowest first; the highest bit says that more follow.
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let (byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::records::{AddressSpace, Process, Thread, UnixMessage, UnixSocket, Vma};

    #[test]
    fn field_numbers_are_those_of_the_messages() {
        let memory = AddressSpace { vmas: vec![Vma::default(); 5], ..AddressSpace::default() };
        let threads = vec![Thread::default(); 3];
        let process = Process { pid: 1, threads, memory: Some(memory), ..Process::default() };
        let encoded = process.encode_to_vec();
        let fields: Vec<_> = Fields { rest: &encoded }.collect();
        let count = |fields: &[(u64, &[u8])], number| fields.iter().filter(|field| field.0 == number).count();
        assert_eq!(count(&fields, PROCESS_THREADS), 3);
        let memory = fields.iter().find(|field| field.0 == PROCESS_MEMORY).unwrap().1;
        assert_eq!(count(&Fields { rest: memory }.collect::<Vec<_>>(), MEMORY_VMAS), 5);
        let socket = UnixSocket { queue: vec![UnixMessage::default(); 2], ..UnixSocket::default() };
        assert_eq!(count(&Fields { rest: &socket.encode_to_vec() }.collect::<Vec<_>>(), SOCKET_QUEUE), 2);
    }

    #[test]
    fn too_many_are_refused_before_they_are_decoded() {
        let key = u8::try_from((PROCESS_THREADS << 3) | 2).unwrap();
        // A key above 127 takes two bytes; the third is the length 0.
        let thread = [key | 0x80, 1, 0];
        assert!(check_counts(RecordKind::Process, &thread.repeat(MAX_THREADS)).is_ok());
        let error = check_counts(RecordKind::Process, &thread.repeat(MAX_THREADS + 1)).unwrap_err();
        assert!(error.to_string().contains("100001 threads"), "{error}");
    }
}
