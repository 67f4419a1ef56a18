//! Files put back and undone, whole and torn, from contents made by hand.

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use proptest::prelude::*;
use rewake_image::records::{Extent, FileIdentity};
use rewake_image::{Compression, PageWriter, PendingImage, sample};
use tempfile::TempDir;

use super::*;
use crate::streams::Streams;

const PAGE: u64 = rewake_image::PAGE_SIZE;
/// Time of change of every file as it was at the capture.
const THEN: i64 = 1_600_000_000;

/// A folder with an image that has content of files, which need not be there.
struct Bench {
    folder: TempDir,
    image: Image,
    reader: PageReader,
    ids: BTreeSet<u32>,
}

impl Bench {
    /// With these contents, under these names; pages of zeros are holes.
    fn new(files: &[(&str, &[u8])]) -> Self {
        let folder = TempDir::new().expect("a folder");
        let base = folder.path().canonicalize().expect("its whole path");
        let pending = PendingImage::create(&base.join("image")).expect("an image");
        let writer = PageWriter::create(&pending, Compression::None).expect("its pages");
        let mut stream = Vec::new();
        let contents: Vec<FileContent> = (1..)
            .zip(files)
            .map(|(id, (name, bytes))| content(id, &base.join(name), bytes, &mut stream))
            .collect();
        for (index, block) in (0..).zip(stream.chunks(rewake_image::BLOCK_SIZE)) {
            writer.block(index, block).expect("written");
        }
        let image =
            Image { stream: writer.finish().expect("a stream"), file_contents: contents, ..sample::image() };
        let reader_at = pending.path().to_owned();
        let reader = PageReader::open(&reader_at, &image.stream).expect("its reader");
        // The records do not matter here, only that the folder stays.
        fs::create_dir(base.join("home")).expect("a folder");
        std::mem::forget(pending);
        fs::rename(&reader_at, base.join("home/image")).expect("renamed");
        let ids = image.file_contents.iter().map(|content| content.id).collect();
        Self { folder, image, reader, ids }
    }

    fn dir(&self) -> PathBuf {
        self.path("home/image")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().canonicalize().expect("its whole path").join(name)
    }

    fn prepare(&self) -> Result<PutBack, PutBackError> {
        PutBack::prepare(&self.dir(), &self.image, &self.reader, &self.ids, &Streams::new())
    }

    fn apply(&self) -> PutBack {
        let mut files = self.prepare().expect("prepared");
        files.apply(&self.image, &self.reader).expect("applied");
        files
    }

    fn journal(&self) -> PathBuf {
        self.dir().join(NAME)
    }
}

fn content(id: u32, path: &Path, bytes: &[u8], stream: &mut Vec<u8>) -> FileContent {
    let mut pages: Vec<Extent> = Vec::new();
    for (address, page) in (0..).step_by(4096).zip(bytes.chunks(4096)) {
        if page.iter().all(|byte| *byte == 0) {
            continue;
        }
        let stream_offset = u64::try_from(stream.len()).expect("small");
        stream.extend_from_slice(page);
        stream.resize(stream.len().next_multiple_of(4096), 0);
        match pages.last_mut() {
            Some(last) if last.end() == Some(address) => last.length += PAGE,
            _ => pages.push(Extent { address, length: PAGE, stream_offset }),
        }
    }
    let identity = FileIdentity {
        path: path.as_os_str().as_encoded_bytes().to_vec(),
        size: bytes.len().try_into().expect("small"),
        mtime_s: THEN,
        mtime_ns: 42,
        mode: 0o100_640,
        ..FileIdentity::default()
    };
    FileContent {
        id,
        identity: Some(identity),
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        pages,
        written: true,
        ..FileContent::default()
    }
}

/// Everything of a file that must be as before.
fn facts(path: &Path) -> Option<(Vec<u8>, u64, i64, i64, u32)> {
    let now = fs::metadata(path).ok()?;
    Some((fs::read(path).expect("its bytes"), now.ino(), now.mtime(), now.mtime_nsec(), now.mode()))
}

fn is_put_back(path: &Path, bytes: &[u8]) {
    let now = fs::metadata(path).expect("its facts");
    assert!(fs::read(path).expect("its bytes") == bytes, "another content");
    assert_eq!((now.mtime(), now.mtime_nsec(), now.mode() & 0o7777), (THEN, 42, 0o640));
}

#[test]
fn nothing_is_done_about_a_file_that_is_what_it_was() {
    let bench = Bench::new(&[("log", b"content")]);
    fs::write(bench.path("log"), "content").expect("a file");
    bench.apply().commit().expect("kept");
    is_put_back(&bench.path("log"), b"content");
    let before = fs::metadata(bench.path("log")).expect("its facts");
    let files = bench.prepare().expect("prepared");
    assert!(files.paths().is_empty() && !bench.dir().join(NEW_NAME).exists() && !bench.journal().exists());
    let now = fs::metadata(bench.path("log")).expect("its facts");
    assert_eq!((now.mtime(), now.mtime_nsec()), (before.mtime(), before.mtime_nsec()));
}

#[test]
fn grown_shrunk_and_missing_files_are_put_back_or_all_left() {
    let contents: [(&str, &[u8]); 3] =
        [("grown", b"short"), ("shrunk", &[9; 10_000]), ("missing", b"was there")];
    let bench = Bench::new(&contents);
    fs::write(bench.path("grown"), [1; 100_000]).expect("a file");
    fs::write(bench.path("shrunk"), "x").expect("a file");
    fs::set_permissions(bench.path("shrunk"), Permissions::from_mode(0o600)).expect("its mode");
    let names = ["grown", "shrunk", "missing"].map(|name| bench.path(name));
    let before = names.clone().map(|path| facts(&path));
    let files = bench.apply();
    assert_eq!(files.paths(), names);
    contents.iter().for_each(|(name, bytes)| is_put_back(&bench.path(name), bytes));
    drop(files);
    assert_eq!(names.clone().map(|path| facts(&path)), before);
    assert!(!bench.journal().exists());
    bench.apply().commit().expect("kept");
    contents.iter().for_each(|(name, bytes)| is_put_back(&bench.path(name), bytes));
    assert!(!bench.journal().exists());
}

#[test]
fn only_what_differs_is_journaled() {
    let log = vec![3; 8 << 20];
    let bench = Bench::new(&[("log", &log)]);
    let mut grown = log.clone();
    grown.extend_from_slice(&vec![4; 100_000]);
    fs::write(bench.path("log"), &grown).expect("a file");
    let files = bench.prepare().expect("prepared");
    let journal = fs::metadata(bench.journal()).expect("the journal").len();
    assert!((100_000..300_000).contains(&journal), "{journal} bytes");
    drop(files);
}

#[test]
fn a_file_that_another_has_open_for_writing_is_refused() {
    let bench = Bench::new(&[("log", b"content")]);
    fs::write(bench.path("log"), "other").expect("a file");
    let writer = fs::File::options().append(true).open(bench.path("log")).expect("open");
    let error = bench.prepare().expect_err("refused");
    let PutBackError::Busy { path, who } = error else { panic!("{error}") };
    assert_eq!(path, bench.path("log"));
    assert!(who.contains(&std::process::id().to_string()), "{who}");
    drop(writer);
    drop(bench.prepare().expect("free again"));
}

#[test]
fn a_link_or_a_folder_in_its_place_is_refused() {
    let bench = Bench::new(&[("log", b"content")]);
    fs::write(bench.path("victim"), "victim").expect("a file");
    std::os::unix::fs::symlink(bench.path("victim"), bench.path("log")).expect("a link");
    assert!(bench.prepare().expect_err("refused").to_string().contains("symbolic link"));
    fs::remove_file(bench.path("log")).expect("removed");
    fs::create_dir(bench.path("log")).expect("a folder");
    bench.prepare().expect_err("refused");
    assert_eq!(fs::read(bench.path("victim")).expect("its bytes"), b"victim");
    assert!(!bench.dir().join(NEW_NAME).exists());
}

#[test]
fn a_damaged_image_changes_nothing() {
    let bench = Bench::new(&[("log", &[5; 4096])]);
    fs::write(bench.path("log"), "other").expect("a file");
    let pages = fs::File::options().write(true).open(bench.dir().join("pages")).expect("the pages");
    pages.write_all_at(b"x", 100).expect("damaged");
    assert!(matches!(bench.prepare().expect_err("refused"), PutBackError::Image(_)));
    assert_eq!(fs::read(bench.path("log")).expect("its bytes"), b"other");
}

/// As if `resume` had died: the journal stays, and nobody holds its lock.
fn abandon(mut files: PutBack) {
    let active = files.active.take().expect("there is something to abandon");
    drop(active);
}

#[test]
fn a_dead_resumes_files_are_undone_by_the_next_command() {
    let bench = Bench::new(&[("one", b"first"), ("two", b"second")]);
    fs::write(bench.path("one"), "other").expect("a file");
    let before = facts(&bench.path("one"));
    let files = bench.apply();
    assert_eq!(recover::image(&bench.dir()).expect("looked at"), Found::Live, "its resume lives");
    abandon(files);
    assert!(bench.journal().exists());
    let links = registry::links();
    assert!(links.iter().any(|link| link.image == bench.dir()), "no link to it");
    let Found::Undone(undone) = recover::image(&bench.dir()).expect("carried out") else { panic!("nothing") };
    assert_eq!((undone.files, undone.foreign.len(), undone.kept), (2, 0, None));
    assert_eq!(facts(&bench.path("one")), before);
    assert!(!bench.path("two").exists() && !bench.journal().exists());
    assert_eq!(recover::image(&bench.dir()).expect("looked at"), Found::Nothing);
    for link in links.iter().filter(|link| link.image == bench.dir()) {
        link.remove();
    }
}

#[test]
fn what_others_did_meanwhile_is_left_alone() {
    let bench = Bench::new(&[("one", b"first"), ("two", b"second")]);
    for name in ["one", "two"] {
        fs::write(bench.path(name), "other").expect("a file");
    }
    let before = facts(&bench.path("two"));
    let mut files = bench.apply();
    fs::write(bench.path("one"), "theirs").expect("a file");
    let PutBackError::Moving { path } = files.commit().expect_err("noticed") else { panic!("another error") };
    assert_eq!(path, bench.path("one"));
    let undone = files.roll_back().expect("undone").expect("there was something");
    assert_eq!(undone.foreign, [(bench.path("one"), "it was changed")]);
    assert_eq!(fs::read(bench.path("one")).expect("its bytes"), b"theirs");
    assert_eq!(facts(&bench.path("two")), before);
    let kept = undone.kept.expect("the journal is kept");
    assert!(kept.exists() && !bench.journal().exists());
}

#[test]
fn a_file_replaced_meanwhile_is_left_alone() {
    let bench = Bench::new(&[("one", b"first")]);
    fs::write(bench.path("one"), "other").expect("a file");
    abandon(bench.apply());
    fs::write(bench.path("new"), "other").expect("a file");
    fs::rename(bench.path("new"), bench.path("one")).expect("renamed");
    let Found::Undone(undone) = recover::image(&bench.dir()).expect("looked at") else { panic!("nothing") };
    assert_eq!(undone.foreign, [(bench.path("one"), "it was replaced")]);
    assert_eq!(fs::read(bench.path("one")).expect("its bytes"), b"other");
    recover::pending().into_iter().for_each(drop);
}

#[test]
fn journals_that_are_none_of_ours_are_not_carried_out() {
    let bench = Bench::new(&[("one", b"first")]);
    fs::write(bench.path("one"), "other").expect("a file");
    abandon(bench.apply());
    let journal = fs::read(bench.journal()).expect("its bytes");
    assert!(matches!(recover::image(&bench.dir()), Ok(Found::Undone(_))));
    // A copy, as a backup brings it back.
    bench.apply().commit().expect("kept");
    fs::write(bench.journal(), &journal).expect("a copy");
    if fs::metadata(bench.journal()).expect("its facts").ino()
        == Journal::parse(&journal).expect("parsed").inode
    {
        fs::write(bench.dir().join("in-the-way"), "").expect("a file");
        fs::rename(bench.journal(), bench.dir().join("away")).expect("renamed");
        fs::write(bench.journal(), &journal).expect("a copy");
    }
    fs::set_permissions(bench.journal(), Permissions::from_mode(0o600)).expect("its mode");
    assert_eq!(recover::image(&bench.dir()).expect("looked at"), Found::Nothing);
    is_put_back(&bench.path("one"), b"first");
    // Not a journal at all: the image is not usable before somebody looked.
    fs::write(bench.journal(), "nonsense").expect("a file");
    assert!(matches!(recover::image(&bench.dir()), Err(PutBackError::Stuck { .. })));
    // Something that others may write to.
    fs::set_permissions(bench.journal(), Permissions::from_mode(0o666)).expect("its mode");
    assert!(matches!(recover::image(&bench.dir()), Err(PutBackError::NotOurs { .. })));
    recover::pending().into_iter().for_each(drop);
}

#[test]
fn an_unfinished_journal_is_cleared() {
    let bench = Bench::new(&[("one", b"first")]);
    fs::write(bench.dir().join(NEW_NAME), "begun").expect("a file");
    fs::set_permissions(bench.dir().join(NEW_NAME), Permissions::from_mode(0o600)).expect("its mode");
    assert_eq!(recover::image(&bench.dir()).expect("looked at"), Found::Nothing);
    assert!(!bench.dir().join(NEW_NAME).exists());
}

#[test]
fn two_at_once_are_refused() {
    let bench = Bench::new(&[("one", b"first")]);
    let files = bench.apply();
    assert!(matches!(bench.prepare(), Err(PutBackError::Locked { .. })));
    drop(files);
}

/// Bytes in runs, so that whole pages are equal, zeros, or not there.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let run = (prop_oneof![Just(0u8), 1..4u8], 1..30_000usize);
    proptest::collection::vec(run, 0..8).prop_map(|runs| {
        runs.into_iter().flat_map(|(byte, count)| std::iter::repeat_n(byte, count)).collect()
    })
}

/// A file on the way from one content to another, as a kill or a loss of power can leave it.
fn torn(old: &[u8], new: &[u8], choices: &[u8], cut: usize) -> Vec<u8> {
    let (least, most) = (old.len().min(new.len()), old.len().max(new.len()));
    // The kernel makes a file longer by whole pages, up to the end of what is written.
    let size = match least + cut % (most - least + 1) {
        size if size == least => least,
        size => size.next_multiple_of(4096).min(most),
    };
    let mut out = vec![0; size];
    for (index, page) in out.chunks_mut(4096).enumerate() {
        let from = if choices[index % choices.len()] & 1 == 0 { old } else { new };
        let at = index * 4096;
        // Cut off before it was written over.
        let from =
            if new.len() < old.len() && from == old && size == new.len() { &old[..new.len()] } else { from };
        let part = from.get(at..).unwrap_or_default();
        let count = part.len().min(page.len());
        page[..count].copy_from_slice(&part[..count]);
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn apply_then_undo_is_nothing(old in bytes(), new in bytes()) {
        let bench = Bench::new(&[("file", &new)]);
        let path = bench.path("file");
        fs::write(&path, &old).expect("a file");
        let before = facts(&path);
        let files = bench.apply();
        is_put_back(&path, &new);
        drop(files);
        prop_assert!(facts(&path) == before);
        bench.apply().commit().expect("kept");
        is_put_back(&path, &new);
    }

    #[test]
    fn whatever_was_done_is_undone(
        old in bytes(),
        new in bytes(),
        choices in proptest::collection::vec(any::<u8>(), 1..40),
        cut in any::<usize>(),
        undoing in any::<bool>(),
    ) {
        let bench = Bench::new(&[("file", &new)]);
        let path = bench.path("file");
        fs::write(&path, &old).expect("a file");
        let before = facts(&path);
        let mut files = bench.prepare().expect("prepared");
        let progress = if undoing { Progress::Undoing } else { Progress::Applying };
        files.active.as_mut().expect("they differ in time").note(0, progress).expect("noted");
        abandon(files);
        let file = fs::File::options().write(true).open(&path).expect("open");
        file.set_len(0).expect("cut");
        file.write_all_at(&torn(&old, &new, &choices, cut), 0).expect("written");
        let Found::Undone(undone) = recover::image(&bench.dir()).expect("carried out") else { panic!("nothing") };
        prop_assert!(undone.foreign.is_empty(), "{:?}", undone.foreign);
        prop_assert!(facts(&path) == before);
    }
}

#[test]
fn decisions_follow_the_policy() {
    use crate::OnChanged::{AsIs, Error, Restore};
    use decide::{Now, decide};
    use rewake_image::records::open_file;

    let mut image = sample::image();
    let identity = image.open_files.iter().find_map(|file| match &file.kind {
        Some(open_file::Kind::Regular(regular)) => regular.identity.clone(),
        _ => None,
    });
    for file in &mut image.open_files {
        if let Some(open_file::Kind::Regular(regular)) = &mut file.kind {
            regular.content = Some(7);
        }
    }
    image.file_contents = vec![FileContent { id: 7, identity, written: true, ..FileContent::default() }];
    let mut data_changed = |identity: &FileIdentity| {
        if identity.as_path().ends_with("data") { Now::Changed("changed".into()) } else { Now::Same }
    };
    let ids = |ids: &BTreeSet<u32>| ids.iter().copied().collect::<Vec<_>>();
    let error = decide(&image, Error, &mut data_changed);
    assert!(error.refused.len() == 1 && error.remedies.restore && error.remedies.as_is, "{error:?}");
    let restore = decide(&image, Restore, &mut data_changed);
    assert!(restore.refused.is_empty() && ids(&restore.put_back) == [7], "{restore:?}");
    let as_is = decide(&image, AsIs, &mut data_changed);
    assert!(as_is.refused.is_empty() && as_is.put_back.is_empty() && as_is.private.is_empty());

    image.file_contents[0].written = false;
    for policy in [Error, Restore] {
        let read = decide(&image, policy, &mut data_changed);
        assert!(read.refused.is_empty() && read.put_back.is_empty() && ids(&read.private) == [7], "{read:?}");
    }
    let mut gone = |_: &FileIdentity| Now::Unusable("cannot be used".into());
    let read = decide(&image, AsIs, &mut gone);
    assert_eq!(ids(&read.private), [7]);
    assert_eq!(read.refused.len(), 1, "the executable has no content: {read:?}");
    assert!(!read.remedies.as_is && read.remedies.not_stored);
}

#[test]
fn a_journal_that_cannot_be_read_is_an_error_of_its_own() {
    let error = Journal::parse(b"").expect_err("nothing");
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
}
