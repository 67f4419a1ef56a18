//! Makes a checkpoint of its own and ends; woken from it, it goes on where it was.
//!
//! ```text
//! LD_PRELOAD=libckpt.so ./rounds; LD_PRELOAD=libckpt.so ./rounds =recover
//! ```
//!
//! # Safety
//! Unsafe here: numbers are left out of the image that nobody relies on.

#![allow(unsafe_code, reason = "see Safety above")]

use std::collections::BTreeMap;
use std::process::exit;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use rewake_ckpt::Life;

static CALLS: Mutex<Vec<String>> = Mutex::new(Vec::new());
static WORKED: AtomicU32 = AtomicU32::new(0);

fn note(what: &str) {
    CALLS.lock().expect("nobody panics").push(what.to_owned());
}

fn main() {
    if !rewake_ckpt::is_there() {
        let error = rewake_ckpt::here().expect_err("there is no library");
        println!("{error}");
        exit(4);
    }
    rewake_ckpt::on_checkpoint(|| note("before")).expect("a place for it");
    rewake_ckpt::on_resume(|how| note(&format!("{how:?}"))).expect("a place for it");
    std::thread::spawn(|| {
        loop {
            let _section = rewake_ckpt::section();
            WORKED.fetch_add(1, Ordering::Relaxed);
        }
    });
    let mut scratch = vec![7u8; 1 << 20];
    // SAFETY: numbers that nobody relies on.
    unsafe { rewake_ckpt::exclude(scratch.as_mut_ptr(), scratch.len()) }.expect("memory of ours");
    let mut squares = BTreeMap::new();
    for round in 0..100u64 {
        squares.insert(round, round * round);
        if round != 50 {
            continue;
        }
        let life = rewake_ckpt::here().unwrap_or_else(|error| {
            println!("{error}");
            exit(1)
        });
        if life == Life::Saved {
            println!("saved in round {round}");
            exit(3);
        }
    }
    let calls = CALLS.lock().expect("nobody panics").join(" ");
    assert_eq!(calls, "before Ok(Woken)");
    assert_eq!((squares.len(), squares[&99]), (100, 9801));
    let middle = std::hint::black_box(&scratch)[1 << 19];
    assert_eq!(middle, 0, "it was not kept");
    let before = WORKED.load(Ordering::Relaxed);
    while WORKED.load(Ordering::Relaxed) == before {
        std::thread::yield_now();
    }
    println!("PASS");
}
