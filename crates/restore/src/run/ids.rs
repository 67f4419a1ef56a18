//! The ids that the new processes are to have: whether they are free, and who has them.

use std::time::{Duration, Instant};

use rewake_linux::proc::{Proc, Stat};
use rewake_linux::program::Assembled;
use rewake_linux::seed::SharedStage;

use crate::error::RestoreError;
use crate::plan::Plan;

/// How long a dead process may keep its id before its parent takes note of it.
const ZOMBIE_PATIENCE: Duration = Duration::from_secs(2);

/// Those who were killed a moment ago keep their ids until somebody takes note of their end.
pub(super) fn await_free(plan: &Plan) {
    let started = Instant::now();
    let is_zombie = |id: &i32| {
        let stat = Proc::open(*id).and_then(|proc| proc.stat());
        stat.is_ok_and(|stat| matches!(stat.state, 'Z' | 'X'))
    };
    while plan.own_proc.is_none() && plan.tids.values().any(is_zombie) && started.elapsed() < ZOMBIE_PATIENCE
    {
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(super) fn clone_seed(
    stage: &SharedStage,
    assembled: &Assembled,
    plan: &Plan,
    pid: i32,
) -> Result<i32, RestoreError> {
    let started = Instant::now();
    loop {
        let error = match stage.clone_seed(assembled, plan.leader, Some(pid)) {
            Ok(pid) => return Ok(pid),
            Err(error) => error,
        };
        match error.raw_os_error() {
            Some(libc::EEXIST) => {
                let (owner, zombie) = owner_of(pid);
                if !zombie || started.elapsed() > ZOMBIE_PATIENCE {
                    return Err(RestoreError::PidTaken { pid, owner });
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            Some(libc::EPERM) => return Err(RestoreError::PidForbidden { pid }),
            _ => {
                let object = "new process".into();
                return Err(RestoreError::System { operation: "clone3", pid, object, source: error });
            }
        }
    }
}

/// A process whose group or session has this id.
fn member_of(id: i32) -> Option<Stat> {
    let all = rewake_linux::proc::processes().ok()?;
    let mut stats = all.into_iter().filter_map(|pid| Proc::open(pid).and_then(|proc| proc.stat()).ok());
    stats.find(|stat| !matches!(stat.state, 'Z' | 'X') && (stat.pgrp == id || stat.session == id))
}

/// Who has an id, for people, and whether it is only a zombie (or gone already). It may be a thread's, or that of a group or
/// session whose leader is gone.
pub(super) fn owner_of(pid: i32) -> (String, bool) {
    let Ok(stat) = Proc::open(pid).and_then(|proc| proc.stat()) else {
        return match member_of(pid) {
            Some(stat) => {
                let name = String::from_utf8_lossy(&stat.comm);
                let kind = if stat.session == pid { "session" } else { "group" };
                (format!("the {kind} that process {} ({name}, parent {}) is in", stat.pid, stat.ppid), false)
            }
            None => (format!("{pid} (a process that just ended)"), true),
        };
    };
    let name = String::from_utf8_lossy(&stat.comm).into_owned();
    let state = stat.state;
    (format!("{pid} ({name}, state {state}, parent {})", stat.ppid), matches!(state, 'Z' | 'X'))
}
