//! Plans of births, carried out by the model.

use super::model::{history, wrong};
use super::*;

const HISTORIES: u64 = 2000;

/// Of so many histories, those whose trees are refused; all others come out as they were.
fn refused(rare: bool) -> Vec<(u64, CannotBeMade)> {
    let mut refused = Vec::new();
    for seed in 0..HISTORIES {
        let processes = history(seed, rare);
        match Births::plan(&processes) {
            Ok(births) => assert_eq!(wrong(&births, &processes), None, "seed {seed}"),
            Err(error) => refused.push((seed, error)),
        }
    }
    refused
}

/// Two or more between that have ended, with memory of each other and in several sessions: the limit is what is refused, and a little.
#[test]
fn what_histories_of_forks_leave_is_made_again() {
    let refused = refused(false);
    assert!(refused.len() < 30, "{} of {HISTORIES}: {refused:#?}", refused.len());
}

/// Also processes that share no longer what they did, became other programs, or made siblings.
#[test]
fn what_rare_histories_leave_is_made_again_or_refused() {
    let refused = refused(true);
    assert!(refused.len() < 400, "{} of {HISTORIES}", refused.len());
}

fn process(pid: i32, ppid: i32, sid: i32) -> Process {
    let pgid = if sid == 900 { 10 } else { sid };
    Process { pid, ppid, sid, pgid, outside_session: sid == 900, ..Process::default() }
}

/// The root is 10 and in the session 900 of whoever started it.
fn plan(processes: &[Process]) -> Births<'_> {
    let births = Births::plan(processes).expect("it can be made");
    births.with_spare_ids(&[100, 101, 102]).expect("few ghosts")
}

#[test]
fn an_ended_one_between_is_there_again_for_a_moment() {
    let descriptors = Process { descriptors_of: Some(11), ..process(12, 10, 900) };
    let processes = [
        process(10, 1, 900),
        process(11, 10, 900),
        Process { exit_signal: Some(0), ..process(13, 10, 900) },
        descriptors,
    ];
    // A child of the same parent makes it, unless its end would send another signal.
    let births = plan(&processes);
    let node = births.node(12).expect("there");
    assert_eq!((node.maker, node.beside, node.shares), (Some(11), true, [false, true, false, false]));
    let deeper = Process { descriptors_of: Some(14), ..process(15, 10, 900) };
    let processes = [process(10, 1, 900), process(11, 10, 900), process(14, 11, 900), deeper];
    let births = plan(&processes);
    let ghost = births.node(100).expect("a ghost");
    assert_eq!((ghost.maker, ghost.heir, ghost.shares), (Some(14), Some(10), [false, true, false, false]));
    assert_eq!(births.node(15).and_then(|node| node.maker), Some(100));
    assert!(births.inherits(10, 0) && births.rounds() == 1);
}

#[test]
fn heirs_further_up_get_theirs_first() {
    // 12 led session 12, has ended and was left to 11; one of that session is the root's child, the other 11's.
    let zombie = Process { exit_status: Some(0), ..process(12, 11, 12) };
    let (upper, lower) = (process(13, 10, 12), process(14, 11, 12));
    let processes = [process(10, 1, 900), process(11, 10, 900), upper, lower, zombie];
    let births = plan(&processes);
    assert_eq!(wrong(&births, &processes), None);
    let gone = [process(10, 1, 900), process(11, 10, 900), process(13, 10, 12), process(14, 11, 12)];
    let births = plan(&gone);
    assert_eq!(wrong(&births, &gone), None);
    assert_eq!(births.rounds(), 2);
    assert!(births.inherits(10, 0) && births.inherits(11, 1));
}

#[test]
fn what_two_have_who_are_not_related_was_had_first_by_one_who_is_gone() {
    let folders = Process { folders_of: Some(11), ..process(12, 10, 12) };
    let both = Process { folders_of: Some(11), descriptors_of: Some(10), ..process(13, 10, 13) };
    let processes = [process(10, 1, 900), process(11, 10, 11), folders, both];
    let births = plan(&processes);
    assert_eq!(wrong(&births, &processes), None);
}

#[test]
fn what_nobody_can_have_made_is_refused_by_name() {
    // Memory of one and folders of another, neither of which is anywhere near.
    let both =
        Process { memory_of: Some(12), folders_of: Some(14), exit_signal: Some(0), ..process(15, 10, 900) };
    let processes = [
        process(10, 1, 900),
        process(11, 10, 900),
        process(12, 11, 900),
        process(13, 10, 900),
        process(14, 13, 900),
        both,
    ];
    let error = Births::plan(&processes).expect_err("nobody can");
    assert!(error.pid == 15 && error.to_string().contains("in common with 12, 14"), "{error}");
}

#[test]
fn a_spare_id_is_asked_for_each_ghost_that_was_nobody() {
    let deeper = Process { descriptors_of: Some(14), ..process(15, 10, 900) };
    let processes = [process(10, 1, 900), process(11, 10, 900), process(14, 11, 900), deeper];
    let births = Births::plan(&processes).expect("a plan");
    assert_eq!(births.spare_ids(), 1);
    assert_eq!(births.with_spare_ids(&[]).expect_err("none is free"), 1);
}
