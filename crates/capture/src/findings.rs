//! Obstacles as they are found.

use std::fmt::Display;

use crate::error::{CaptureError, Obstacle, Result};

/// Collects what stands in the way of a capture, so that all of it can be told at once.
#[derive(Debug)]
pub(crate) struct Findings {
    pid: i32,
    obstacles: Vec<Obstacle>,
    threads: Vec<ThreadObstacle>,
}

/// Why one file cannot be captured.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) reason: String,
    pub(crate) remedy: String,
    /// It may be over in a moment, by itself.
    pub(crate) passing: bool,
}

impl Refusal {
    /// For good.
    pub(crate) fn new(reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { reason: reason.into(), remedy: remedy.into(), passing: false }
    }

    /// For now.
    pub(crate) fn passing(reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { passing: true, ..Self::new(reason, remedy) }
    }
}

/// The same obstacle in any number of threads.
#[derive(Debug)]
struct ThreadObstacle {
    pid: i32,
    reason: String,
    remedy: String,
    tids: Vec<i32>,
}

/// How many threads are named one by one.
const NAMED: usize = 3;

impl Findings {
    /// Nothing found yet.
    pub(crate) const fn new(pid: i32) -> Self {
        Self { pid, obstacles: Vec::new(), threads: Vec::new() }
    }

    /// What is found from now on is about this process.
    pub(crate) const fn turn_to(&mut self, pid: i32) {
        self.pid = pid;
    }

    /// Adds one obstacle; the same one twice counts once.
    pub(crate) fn add(&mut self, object: impl Display, reason: impl Display, remedy: impl Display) {
        let (object, reason, remedy) = (object.to_string(), reason.to_string(), remedy.to_string());
        self.insert(Obstacle { pid: self.pid, object, reason, remedy, passing: false });
    }

    fn insert(&mut self, obstacle: Obstacle) {
        if !self.obstacles.contains(&obstacle) {
            self.obstacles.push(obstacle);
        }
    }

    /// Adds why a file cannot be captured.
    pub(crate) fn refuse(&mut self, object: String, refusal: Refusal) {
        let Refusal { reason, remedy, passing } = refusal;
        self.insert(Obstacle { pid: self.pid, object, reason, remedy, passing });
    }

    /// Adds an obstacle in a thread; the same one in many threads is told once.
    pub(crate) fn add_thread(&mut self, tid: i32, reason: impl Display, remedy: impl Display) {
        let (reason, remedy) = (reason.to_string(), remedy.to_string());
        match self
            .threads
            .iter_mut()
            .find(|known| (known.pid, &known.reason, &known.remedy) == (self.pid, &reason, &remedy))
        {
            Some(known) if known.tids.contains(&tid) => {}
            Some(known) => known.tids.push(tid),
            None => self.threads.push(ThreadObstacle { pid: self.pid, reason, remedy, tids: vec![tid] }),
        }
    }

    /// Adds all that another look has found.
    pub(crate) fn append(&mut self, other: Self) {
        other.into_obstacles().into_iter().for_each(|obstacle| self.insert(obstacle));
    }

    /// Forgets what was found about some processes.
    pub(crate) fn forget(&mut self, who: impl Fn(i32) -> bool) {
        self.obstacles.retain(|obstacle| !who(obstacle.pid));
        self.threads.retain(|obstacle| !who(obstacle.pid));
    }

    /// All that was found.
    pub(crate) fn into_obstacles(mut self) -> Vec<Obstacle> {
        for ThreadObstacle { pid, reason, remedy, tids } in std::mem::take(&mut self.threads) {
            self.turn_to(pid);
            let named: Vec<String> = tids.iter().take(NAMED).map(ToString::to_string).collect();
            let object = match (tids.len(), tids.len().saturating_sub(NAMED)) {
                (1, _) => format!("thread {}", named[0]),
                (_, 0) => format!("threads {}", named.join(", ")),
                (_, more) => format!("threads {} and {more} more", named.join(", ")),
            };
            self.add(object, reason, remedy);
        }
        self.obstacles
    }

    /// Refuses when anything was found.
    pub(crate) fn into_result(self) -> Result<()> {
        let obstacles = self.into_obstacles();
        if obstacles.is_empty() { Ok(()) } else { Err(CaptureError::Refused(obstacles)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_twice_counts_once_and_threads_are_told_together() {
        let mut findings = Findings::new(7);
        findings.add("a", "b", "c");
        findings.add("a", "b", "c");
        for tid in [7, 8, 8, 9, 10, 11] {
            findings.add_thread(tid, "x", "y");
        }
        findings.add_thread(9, "z", "y");
        let objects: Vec<String> = findings.into_obstacles().into_iter().map(|one| one.object).collect();
        assert_eq!(objects, ["a", "threads 7, 8, 9 and 2 more", "thread 9"]);
        assert!(Findings::new(7).into_result().is_ok());
    }
}
