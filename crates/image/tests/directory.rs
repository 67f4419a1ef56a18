//! The image's directory: whole or not there, whatever happens.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rewake_image::{
    Compression, Image, ImageError, PAGES_FILE, PageReader, PageWriter, PendingImage, RECORDS_FILE,
    clear_stale, remove_pending, sample, store, verify,
};

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// A temporary of a run that died: nobody holds a lock on it.
fn stale(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap().to_str().unwrap();
    let path = target.with_file_name(format!(".{name}.tmp-0123456789abcdef"));
    fs::create_dir(&path).unwrap();
    fs::write(path.join(RECORDS_FILE), sample::image().encode().unwrap()).unwrap();
    fs::write(path.join(PAGES_FILE), "cut off").unwrap();
    path
}

#[test]
fn published_whole_and_private() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("image");
    let pending = PendingImage::create(&target).unwrap();
    assert!(!target.exists());
    assert_eq!(pending.path().parent(), target.parent());
    let writer = PageWriter::create(&pending, Compression::None).unwrap();
    writer.block(0, &sample::pages()).unwrap();
    let image = Image { stream: writer.finish().unwrap(), ..sample::image() };
    pending.write_records(&image).unwrap();
    let synced = pending.sync().unwrap();
    assert!(!target.exists());
    synced.publish().unwrap();
    assert_eq!(names(folder.path()), ["image"]);
    assert_eq!(mode(&target), 0o700);
    assert_eq!([RECORDS_FILE, PAGES_FILE].map(|name| mode(&target.join(name))), [0o600; 2]);
    assert_eq!(Image::open(&target).unwrap(), image);
}

#[test]
fn dropped_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("image");
    let pending = PendingImage::create(&target).unwrap();
    pending.write_records(&sample::image()).unwrap();
    drop(pending);
    assert!(names(folder.path()).is_empty());
    let pending = PendingImage::create(&target).unwrap();
    pending.write_records(&sample::image()).unwrap();
    drop(pending.sync().unwrap());
    assert!(names(folder.path()).is_empty());
}

#[test]
fn replaces_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("image");
    let pending = PendingImage::create(&target).unwrap();
    fs::create_dir(&target).unwrap();
    assert!(matches!(PendingImage::create(&target), Err(ImageError::Exists { .. })));
    let error = pending.commit().unwrap_err();
    assert!(matches!(error, ImageError::Exists { .. }), "{error}");
    assert_eq!(names(folder.path()), ["image"]);
    assert!(names(&target).is_empty());
}

#[test]
fn dangling_link_counts_as_existing() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("image");
    symlink("nowhere", &target).unwrap();
    assert!(matches!(PendingImage::create(&target), Err(ImageError::Exists { .. })));
}

#[test]
fn senseless_records_are_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let pending = PendingImage::create(&folder.path().join("image")).unwrap();
    let mut image = sample::image();
    image.processes[0].threads.clear();
    let error = pending.write_records(&image).unwrap_err();
    assert!(error.to_string().contains("0 threads"), "{error}");
    assert!(names(pending.path()).is_empty());
}

#[test]
fn temporaries_of_the_dead_are_cleared_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("image");
    let dead = stale(&target);
    let other = stale(&folder.path().join("other"));
    let alive = PendingImage::create(&target).unwrap();
    fs::create_dir(folder.path().join(".image.tmp-notours")).unwrap();
    assert_eq!(clear_stale(&target).unwrap(), std::slice::from_ref(&dead));
    assert!(!dead.exists());
    assert!(alive.path().exists() && other.exists());
    assert!(folder.path().join(".image.tmp-notours").exists());
    assert!(clear_stale(&target).unwrap().is_empty());
}

#[test]
fn a_survivor_removes_the_temporary_of_the_dead() {
    let folder = tempfile::tempdir().unwrap();
    let path = stale(&folder.path().join("image"));
    remove_pending(&path).unwrap();
    assert!(!path.exists());
    remove_pending(&path).unwrap();
    fs::create_dir(folder.path().join("image")).unwrap();
    assert!(matches!(remove_pending(&folder.path().join("image")), Err(ImageError::NotAnImage { .. })));
}

#[test]
fn files_of_others_survive() {
    let folder = tempfile::tempdir().unwrap();
    let path = stale(&folder.path().join("image"));
    fs::write(path.join("mine"), "important").unwrap();
    assert!(remove_pending(&path).is_err());
    assert_eq!(names(&path), ["mine"]);
}

#[test]
fn a_link_is_no_temporary() {
    let folder = tempfile::tempdir().unwrap();
    let victim = folder.path().join("victim");
    sample::write(&victim, Compression::None).unwrap();
    let link = folder.path().join(".image.tmp-0123456789abcdef");
    symlink(&victim, &link).unwrap();
    assert!(clear_stale(&folder.path().join("image")).unwrap().is_empty());
    assert!(remove_pending(&link).is_err());
    assert!(Image::open(&victim).is_ok());
}

#[test]
fn an_image_in_a_linked_folder_is_fine() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("real")).unwrap();
    symlink("real", folder.path().join("link")).unwrap();
    sample::write(&folder.path().join("link/image"), Compression::None).unwrap();
    assert!(verify(&folder.path().join("real/image"), |_, _| ()).is_ok());
}

#[test]
fn a_full_disk_is_told_with_a_remedy() {
    let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
    let error = ImageError::Io { operation: "write", path: PathBuf::from("/x/pages"), source };
    assert!(error.to_string().starts_with("write failed (/x/pages): "), "{error}");
    assert!(error.remedy().unwrap().contains("free some space"));
}

#[test]
fn missing_parent_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = PendingImage::create(&folder.path().join("no/image")).unwrap_err();
    assert!(error.to_string().contains("/no)"), "{error}");
}

#[test]
fn verify_names_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("image");
    sample::write(&target, Compression::None).unwrap();
    let summary = verify(&target, |done, total| assert!(done <= total)).unwrap();
    assert_eq!((summary.blocks, summary.memory_bytes), (1, 6 * 4096));

    fs::write(target.join("surplus"), "").unwrap();
    let error = verify(&target, |_, _| ()).unwrap_err();
    assert!(error.to_string().contains("unexpected file \"surplus\""), "{error}");
    fs::remove_file(target.join("surplus")).unwrap();

    let pages = fs::read(target.join(PAGES_FILE)).unwrap();
    let mut damaged = pages.clone();
    damaged[5000] ^= 1;
    fs::write(target.join(PAGES_FILE), &damaged).unwrap();
    let error = verify(&target, |_, _| ()).unwrap_err();
    assert!(error.to_string().ends_with("pages: block 0 at byte 0: checksum differs"), "{error}");
    fs::write(target.join(PAGES_FILE), &pages[..4096]).unwrap();
    let error = verify(&target, |_, _| ()).unwrap_err();
    assert!(error.to_string().contains("it has 4096 bytes, 24576 expected"), "{error}");
    fs::remove_file(target.join(PAGES_FILE)).unwrap();
    let error = verify(&target, |_, _| ()).unwrap_err();
    assert!(error.to_string().contains("it has no file `pages`"), "{error}");
    symlink("/dev/null", target.join(PAGES_FILE)).unwrap();
    let error = verify(&target, |_, _| ()).unwrap_err();
    assert!(error.to_string().contains("symbolic link"), "{error}");
}

#[test]
fn a_pipe_instead_of_records_does_not_block() {
    let folder = tempfile::tempdir().unwrap();
    let mode = rustix::fs::Mode::RWXU;
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, folder.path().join(RECORDS_FILE), fifo, mode, 0).unwrap();
    let error = Image::open(folder.path()).unwrap_err();
    assert!(error.to_string().contains("no regular file"), "{error}");
}

#[test]
fn a_store_lists_and_finds_the_latest() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    assert!(matches!(store::resolve(root), Err(ImageError::NoCompleteImage { .. })));
    for name in ["1", "2", "3"] {
        sample::write(&root.join(name), Compression::Lz4).unwrap();
    }
    fs::write(root.join("notes"), "").unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    stale(&root.join("4"));
    let list = store::list(root).unwrap();
    assert_eq!(list.iter().map(|image| image.name.as_str()).collect::<Vec<_>>(), ["1", "2", "3"]);
    let facts = list[0].facts().unwrap();
    assert_eq!((facts.pid, facts.threads, facts.command.as_str()), (sample::PID, 2, "program --fast"));
    assert_eq!(store::resolve(root).unwrap(), root.join("3"));
    assert_eq!(store::resolve(&root.join("1")).unwrap(), root.join("1"));

    symlink("2", root.join(store::LATEST)).unwrap();
    assert_eq!(store::resolve(root).unwrap(), root.join("2"));
    fs::remove_file(root.join("2").join(PAGES_FILE)).unwrap();
    assert_eq!(store::resolve(root).unwrap(), root.join("3"));
    let list = store::list(root).unwrap();
    assert_eq!((list[0].name.as_str(), list[0].latest), ("2", true));
    let json = serde_json::to_string(&list[0]).unwrap();
    assert!(json.contains("it has no file `pages`"), "{json}");
    assert_eq!(store::list(&root.join("1")).unwrap().len(), 1);
}

#[test]
fn what_is_read_is_of_the_directory_that_was_opened() {
    let folder = tempfile::tempdir().unwrap();
    let (target, other) = (folder.path().join("image"), folder.path().join("other"));
    let pending = PendingImage::create(&target).unwrap();
    let writer = PageWriter::create(&pending, Compression::None).unwrap();
    writer.block(0, &sample::pages()).unwrap();
    let image = Image { stream: writer.finish().unwrap(), ..sample::image() };
    pending.write_records(&image).unwrap();
    pending.commit().unwrap();
    let directory = rewake_image::open_directory(&target).unwrap();
    fs::rename(&target, &other).unwrap();
    fs::create_dir(&target).unwrap();
    fs::write(target.join(RECORDS_FILE), "nothing").unwrap();
    fs::write(target.join(PAGES_FILE), "nothing").unwrap();
    assert_eq!(Image::open_at(&directory, &target).unwrap(), image);
    assert!(PageReader::open_at(&directory, &target, &image.stream).is_ok());
    assert!(Image::open(&target).is_err() && PageReader::open(&target, &image.stream).is_err());
}
