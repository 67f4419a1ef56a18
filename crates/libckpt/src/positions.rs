//! Positions in files that the kernel makes up as they are read (`/proc/self/maps`): to go to one it makes up all that is before it. The
//! restore went there while there was memory of its own yet; so each is left for the beginning and gone to again.
//!
//! # Safety
//! Unsafe here: raw system calls with buffers of ours, on descriptors of the program's that nobody uses meanwhile.

#![allow(unsafe_code, reason = "see Safety above")]

use crate::{gather, raw};

const BEGIN: &[u8] = b"/proc/";
/// `/proc/self/fd/`, a number, and a zero byte.
const ROOM: usize = 32;

/// Goes to them again.
pub fn again() {
    go_again(0);
    // There may be little room on this stack.
    let _all_seen = gather::each_number(c"/proc/self/fd", &mut [0; 16], &mut go_again);
}

fn go_again(fd: i32) {
    if is_of_proc(fd) {
        let now = seek(fd, 0, libc::SEEK_CUR);
        if now > 0 && seek(fd, 0, libc::SEEK_SET) == 0 {
            seek(fd, now, libc::SEEK_SET);
        }
    }
}

fn seek(fd: i32, to: i64, whence: i32) -> i64 {
    // SAFETY: numbers only.
    unsafe { raw::call(libc::SYS_lseek, [raw::word(fd), to.cast_unsigned(), raw::word(whence), 0, 0, 0]) }
}

fn is_of_proc(fd: i32) -> bool {
    let mut path = [0u8; ROOM];
    let begin = b"/proc/self/fd/";
    path[..begin.len()].copy_from_slice(begin);
    write_number(&mut path[begin.len()..], fd);
    let mut target = [0u8; BEGIN.len()];
    let (from, to) = (path.as_ptr() as u64, target.as_mut_ptr() as u64);
    // SAFETY: a string with a zero byte at its end, and room for as much as is asked for.
    unsafe { raw::call(libc::SYS_readlink, [from, to, target.len() as u64, 0, 0, 0]) };
    target == BEGIN
}

fn write_number(room: &mut [u8], number: i32) {
    let mut digits = 1;
    let mut rest = number;
    while rest > 9 {
        rest /= 10;
        digits += 1;
    }
    rest = number;
    for at in (0..digits).rev() {
        room[at] = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_full() {
        for number in [0, 7, 10, 1023, i32::MAX] {
            let mut room = [0; 16];
            write_number(&mut room, number);
            assert_eq!(room.split(|byte| *byte == 0).next(), Some(number.to_string().as_bytes()));
        }
    }

    #[test]
    fn positions_stay_where_they_are() {
        use std::io::{Read as _, Seek as _};
        let mut file = std::fs::File::open("/proc/self/status").expect("opens");
        let mut some = [0; 20];
        file.read_exact(&mut some).expect("reads");
        again();
        assert_eq!(file.stream_position().expect("has a position"), 20);
        assert!(is_of_proc(std::os::fd::AsRawFd::as_raw_fd(&file)));
    }
}
