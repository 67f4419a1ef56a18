//! Texts of `/proc`: programs choose names in them. The first byte says which file it is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rewake_linux::proc::{FdInfo, Sched, Stat, Status, parse_limits, parse_maps, parse_smaps, parse_timers};

fuzz_target!(|data: &[u8]| {
    let Some((which, text)) = data.split_first() else { return };
    match which % 8 {
        0 => drop(parse_maps(text)),
        1 => drop(parse_smaps(text)),
        2 => drop(FdInfo::parse(text)),
        3 => drop(Stat::parse(text)),
        4 => drop(Status::parse(text)),
        5 => drop(Sched::parse(text)),
        6 => drop(parse_timers(text)),
        _ => drop(parse_limits(text)),
    }
});
