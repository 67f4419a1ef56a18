//! Files and process in one: [`PutBack`] as the phases of a restore use it, with errors that name the process.

use std::path::{Path, PathBuf};

use rewake_image::{Image, PageReader};

use crate::error::RestoreError;
use crate::plan::Site;
use crate::putback::decide::Decisions;
use crate::putback::recover::{self, Found};
use crate::putback::{PutBack, PutBackError, Undone};
use crate::release::LastSteps;
use crate::streams::{Positions, Streams};

/// An image whose files wait to be undone, or are being put back by another `resume`, is not woken: those files are no state of any
/// program.
pub fn refuse_waiting(dir: &Path) -> Result<(), RestoreError> {
    match recover::image(dir) {
        Ok(Found::Nothing | Found::Undone(_)) => Ok(()),
        Ok(Found::Live) => Err(RestoreError::Waiting(PutBackError::Locked { image: dir.to_owned() })),
        // Then there is no journal of ours either: what is set-user-id never writes one.
        Err(PutBackError::SetUserId) => Ok(()),
        Err(error) => Err(RestoreError::Waiting(error)),
    }
}

/// What the program is to get privately must have been prepared: never is a changed file taken instead, in silence.
pub fn refuse_unprepared(image: &Image, site: &Site, decisions: &Decisions) -> Result<(), RestoreError> {
    let missing = decisions.private.iter().find(|id| !site.prepared.contains_key(id));
    let Some(id) = missing else { return Ok(()) };
    let content = image.file_contents.iter().find(|content| content.id == *id);
    let path = content.and_then(|content| content.identity.as_ref()).map(|identity| identity.as_path());
    Err(RestoreError::Unsupported {
        pid: image.root().pid,
        object: path.map(|path| path.display().to_string()).unwrap_or_default(),
        reason: "it changed since, and its saved content cannot be given to the program".into(),
    })
}

/// The files of one restore.
pub struct Transaction {
    pid: i32,
    files: PutBack,
    positions: Positions,
}

impl Transaction {
    pub fn begin(
        dir: &Path,
        image: &Image,
        reader: &PageReader,
        decisions: &Decisions,
        streams: &Streams,
    ) -> Result<Self, RestoreError> {
        let pid = image.root().pid;
        let files = PutBack::prepare(dir, image, reader, &decisions.put_back, streams);
        let files = files.map_err(|source| RestoreError::PutBack { pid, source })?;
        Ok(Self { pid, files, positions: Positions::of(streams) })
    }

    pub fn paths(&self) -> Vec<PathBuf> {
        self.files.paths()
    }

    pub fn apply(&mut self, image: &Image, reader: &PageReader) -> Result<(), RestoreError> {
        let done = self.files.apply(image, reader);
        done.map_err(|source| self.failed(source))
    }

    pub fn check(&self) -> Result<(), RestoreError> {
        self.files.check().map_err(|source| self.failed(source))
    }

    /// After a failure, makes the files what they were before, and says so where that cannot be.
    pub fn end<T>(mut self, outcome: Result<T, RestoreError>) -> Result<T, RestoreError> {
        let error = match outcome {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        self.positions.put_back();
        let (left, remedy) = match self.files.roll_back() {
            Ok(None) => return Err(error),
            Ok(Some(Undone { foreign, kept: Some(kept), .. })) => {
                let names: Vec<String> = foreign
                    .iter()
                    .map(|(path, how)| format!("{} ({how} meanwhile)", path.display()))
                    .collect();
                let remedy = format!("look at them; their old bytes are kept in {}", kept.display());
                (names.join(", "), remedy)
            }
            Ok(Some(_)) => return Err(error),
            Err(problem) => {
                let remedy = problem.remedy().unwrap_or("remove what stands in the way");
                (problem.to_string(), format!("{remedy}; the next rewake command tries again"))
            }
        };
        Err(RestoreError::NotUndone { error: Box::new(error), left, remedy })
    }

    fn failed(&self, source: PutBackError) -> RestoreError {
        RestoreError::PutBack { pid: self.pid, source }
    }
}

impl LastSteps for Transaction {
    fn let_signals_through(&mut self) -> Result<(), RestoreError> {
        let done = self.files.let_signals_through();
        done.map_err(|source| self.failed(source))
    }

    fn commit(&mut self) -> Result<(), RestoreError> {
        let done = self.files.commit();
        done.map_err(|source| self.failed(source))
    }
}
