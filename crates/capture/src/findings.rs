//! Obstacles as they are found.

use std::fmt::Display;

use crate::error::{CaptureError, Obstacle, Result};

/// Collects what stands in the way of a capture, so that all of it can be told at once.
#[derive(Debug)]
pub(crate) struct Findings {
    pid: i32,
    obstacles: Vec<Obstacle>,
}

impl Findings {
    /// Nothing found yet.
    pub(crate) const fn new(pid: i32) -> Self {
        Self { pid, obstacles: Vec::new() }
    }

    /// Adds one obstacle; the same one twice counts once.
    pub(crate) fn add(&mut self, object: impl Display, reason: impl Display, remedy: impl Display) {
        let (object, reason, remedy) = (object.to_string(), reason.to_string(), remedy.to_string());
        let obstacle = Obstacle { pid: self.pid, object, reason, remedy };
        if !self.obstacles.contains(&obstacle) {
            self.obstacles.push(obstacle);
        }
    }

    /// Whether nothing was found.
    pub(crate) fn is_empty(&self) -> bool {
        self.obstacles.is_empty()
    }

    /// All that was found.
    pub(crate) fn into_obstacles(self) -> Vec<Obstacle> {
        self.obstacles
    }

    /// Refuses when anything was found.
    pub(crate) fn into_result(self) -> Result<()> {
        if self.is_empty() { Ok(()) } else { Err(CaptureError::Refused(self.obstacles)) }
    }
}
