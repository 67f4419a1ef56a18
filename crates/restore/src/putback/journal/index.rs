//! The index of a journal, to bytes and back.

use std::ffi::OsString;
use std::io;
use std::ops::Range;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use super::{BLOCK, Chunk, Entry, Old, Origin, State, cut_off, ensure, wrong};

/// PATH_MAX.
const MAX_PATH: usize = 4096;
/// Names and ids of hosts and boots are shorter.
const MAX_NAME: usize = 256;
/// Bytes of a chunk in the index.
const CHUNK: usize = 33;
const SECOND: u32 = 1_000_000_000;

/// Numbers out of bytes.
pub(super) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn bytes(&mut self, count: usize) -> io::Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(cut_off)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        self.bytes(N)?.first_chunk().copied().ok_or_else(cut_off)
    }

    pub(super) fn short(&mut self) -> io::Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn number(&mut self) -> io::Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn flag(&mut self) -> io::Result<bool> {
        match self.array()? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(wrong("a flag")),
        }
    }

    fn counted(&mut self, most: usize, what: &str) -> io::Result<&'a [u8]> {
        let length = usize::try_from(self.short()?).map_err(io::Error::other)?;
        ensure(length <= most, what)?;
        self.bytes(length)
    }

    fn name(&mut self) -> io::Result<String> {
        let name = self.counted(MAX_NAME, "its origin")?;
        String::from_utf8(name.to_vec()).map_err(|_| wrong("its origin"))
    }

    fn state(&mut self) -> io::Result<State> {
        let state = State {
            size: self.number()?,
            mtime_s: i64::from_le_bytes(self.array()?),
            mtime_ns: self.short()?,
            mode: self.short()?,
        };
        ensure(i64::try_from(state.size).is_ok() && state.mtime_ns < SECOND, "size or time of a file")?;
        ensure(state.mode & !0o7777 == 0, "mode of a file")?;
        Ok(state)
    }
}

pub(super) fn encode(origin: &Origin, entries: &[Entry]) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    counted(&mut out, origin.host.as_bytes())?;
    counted(&mut out, origin.boot.as_bytes())?;
    for entry in entries {
        counted(&mut out, entry.path.as_os_str().as_bytes())?;
        out.push(u8::from(entry.old.is_some()));
        if let Some(old) = &entry.old {
            out.extend_from_slice(&old.device.to_le_bytes());
            out.extend_from_slice(&old.inode.to_le_bytes());
            state(&mut out, &old.state);
        }
        state(&mut out, &entry.new);
        out.extend_from_slice(&u32::try_from(entry.chunks.len()).map_err(io::Error::other)?.to_le_bytes());
        for chunk in &entry.chunks {
            out.extend_from_slice(&chunk.offset.to_le_bytes());
            out.extend_from_slice(&chunk.data.to_le_bytes());
            for word in [chunk.old_len, chunk.new_len, chunk.checksum, 0] {
                out.extend_from_slice(&word.to_le_bytes());
            }
            out.push(u8::from(chunk.zeros));
        }
    }
    Ok(out)
}

fn counted(out: &mut Vec<u8>, bytes: &[u8]) -> io::Result<()> {
    out.extend_from_slice(&u32::try_from(bytes.len()).map_err(io::Error::other)?.to_le_bytes());
    out.extend_from_slice(bytes);
    Ok(())
}

fn state(out: &mut Vec<u8>, state: &State) {
    out.extend_from_slice(&state.size.to_le_bytes());
    out.extend_from_slice(&state.mtime_s.to_le_bytes());
    out.extend_from_slice(&state.mtime_ns.to_le_bytes());
    out.extend_from_slice(&state.mode.to_le_bytes());
}

/// Origin and entries; chunks have their data in `data`.
pub(super) fn decode(bytes: &[u8], files: u32, data: Range<u64>) -> io::Result<(Origin, Vec<Entry>)> {
    let mut fields = Fields::new(bytes);
    let origin = Origin { host: fields.name()?, boot: fields.name()? };
    let mut entries = Vec::new();
    for _ in 0..files {
        entries.push(entry(&mut fields, &data)?);
    }
    ensure(fields.0.is_empty(), "the end of its index")?;
    Ok((origin, entries))
}

fn entry(fields: &mut Fields<'_>, data: &Range<u64>) -> io::Result<Entry> {
    let path = fields.counted(MAX_PATH, "a path")?;
    ensure(path.starts_with(b"/") && !path.contains(&0), "a path")?;
    let path = PathBuf::from(OsString::from_vec(path.to_vec()));
    let old = if fields.flag()? {
        Some(Old { device: fields.number()?, inode: fields.number()?, state: fields.state()? })
    } else {
        None
    };
    let new = fields.state()?;
    let count = usize::try_from(fields.short()?).map_err(io::Error::other)?;
    // So many bytes must be there before room is made for what they say.
    ensure(count <= fields.0.len() / CHUNK, "the number of chunks")?;
    let mut chunks = Vec::with_capacity(count);
    let sizes = (old.map_or(0, |old| old.state.size), new.size);
    let mut next = 0;
    for _ in 0..count {
        let chunk = chunk(fields, sizes, data)?;
        ensure(chunk.offset >= next, "the order of chunks")?;
        next = chunk.offset + u64::from(BLOCK);
        chunks.push(chunk);
    }
    Ok(Entry { path, old, new, chunks })
}

fn chunk(fields: &mut Fields<'_>, (old_size, new_size): (u64, u64), data: &Range<u64>) -> io::Result<Chunk> {
    let (offset, at) = (fields.number()?, fields.number()?);
    let (old_len, new_len, checksum) = (fields.short()?, fields.short()?, fields.short()?);
    ensure(fields.short()? == 0, "a chunk")?;
    let chunk = Chunk { offset, old_len, new_len, data: at, checksum, zeros: fields.flag()? };
    let within = |len: u32, size: u64| {
        len <= BLOCK && offset.checked_add(len.into()).is_some_and(|end| len == 0 || end <= size)
    };
    ensure(offset.is_multiple_of(BLOCK.into()) && i64::try_from(offset).is_ok(), "offset of a chunk")?;
    ensure(within(old_len, old_size) && within(new_len, new_size), "length of a chunk")?;
    let end = at.checked_add(chunk.stored());
    ensure(at >= data.start && end.is_some_and(|end| end <= data.end), "the place of old bytes")?;
    Ok(chunk)
}
