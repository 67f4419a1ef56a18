//! Texts of `/proc` with anything in them: a program chooses names there. Parsing ends with a value or an error, whatever they are.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use rewake_linux::proc::{FdInfo, Sched, Stat, Status, parse_limits, parse_maps, parse_smaps, parse_timers};

fn parse_all(text: &[u8]) {
    drop(parse_maps(text));
    drop(parse_smaps(text));
    drop(FdInfo::parse(text));
    drop(Stat::parse(text));
    drop(Status::parse(text));
    drop(Sched::parse(text));
    drop(parse_timers(text));
    drop(parse_limits(text));
}

/// The texts that the fuzz target `proc` begins with, without the byte that says which parser is meant.
fn texts() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/proc");
    let entries = std::fs::read_dir(folder).unwrap();
    let texts: Vec<Vec<u8>> =
        entries.map(|entry| std::fs::read(entry.unwrap().path()).unwrap()[1..].into()).collect();
    assert!(texts.len() >= 8, "a text for each parser");
    texts
}

/// A change of a text at one place.
#[derive(Clone, Debug)]
enum Change {
    Byte(u8),
    Cut,
    Insert(Vec<u8>),
    Remove(usize),
    Number(u64),
}

fn changes() -> impl Strategy<Value = Vec<(prop::sample::Index, Change)>> {
    let change = prop_oneof![
        any::<u8>().prop_map(Change::Byte),
        Just(Change::Cut),
        "[ \t\n:()\\\\-]{1,4}|[0-9a-fA-F]{1,30}|-1|é".prop_map(|text| Change::Insert(text.into_bytes())),
        (1..40usize).prop_map(Change::Remove),
        any::<u64>().prop_map(Change::Number),
    ];
    vec((any::<prop::sample::Index>(), change), 1..5)
}

fn apply(text: &mut Vec<u8>, place: usize, change: Change) {
    match change {
        Change::Byte(byte) => text.get_mut(place).into_iter().for_each(|old| *old = byte),
        Change::Cut => text.truncate(place),
        Change::Insert(bytes) => drop(text.splice(place..place, bytes)),
        Change::Remove(length) => drop(text.drain(place..text.len().min(place + length))),
        Change::Number(number) => drop(text.splice(place..place, number.to_string().into_bytes())),
    }
}

#[test]
fn the_texts_are_what_linux_writes() {
    for text in texts() {
        let known = [
            parse_maps(&text).is_ok_and(|maps| !maps.is_empty()),
            parse_smaps(&text).is_ok_and(|maps| !maps.is_empty()),
            FdInfo::parse(&text).is_ok(),
            Stat::parse(&text).is_ok(),
            Status::parse(&text).is_ok(),
            Sched::parse(&text).is_ok(),
            parse_timers(&text).is_ok_and(|timers| !timers.is_empty()),
            parse_limits(&text).is_ok(),
        ];
        assert!(known.contains(&true), "no parser takes {:?}", String::from_utf8_lossy(&text));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn changed_texts_are_parsed_or_refused(
        text in prop::sample::select(texts()),
        changes in changes(),
    ) {
        let mut text = text;
        for (place, change) in changes {
            let place = place.index(text.len() + 1);
            apply(&mut text, place, change);
        }
        parse_all(&text);
    }

    #[test]
    fn arbitrary_texts_are_parsed_or_refused(text in vec(any::<u8>(), 0..400)) {
        parse_all(&text);
    }
}
