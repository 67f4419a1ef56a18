//! Which image is recovered: that which is named, or the latest one in a store that is of this program.

use std::path::{Path, PathBuf};

use rewake_image::{Image, ImageError, build_id, store};

use super::Wanted;

/// The image of this program. Programs may share a store: one that was made later by another of them is told of.
///
/// # Errors
/// A text for people.
pub fn image(place: &Path, wanted: &Wanted<'_>) -> Result<PathBuf, String> {
    if wanted.dir.is_some() {
        check_named(place)?;
    }
    let latest = latest(place)?;
    let Err(refusal) = check(&latest, wanted) else { return Ok(latest) };
    let others = store::list(place).unwrap_or_default();
    let complete = others.iter().rev().filter(|image| image.facts().is_some() && image.path != latest);
    let ours = complete.map(|image| &image.path).find(|path| check(path, wanted).is_ok());
    let Some(ours) = ours else { return Err(refusal) };
    eprintln!("{}; recovering {}", refusal.lines().next().unwrap_or_default(), ours.display());
    Ok(ours.clone())
}

/// What somebody named must be an image, or a folder of them.
fn check_named(place: &Path) -> Result<(), String> {
    let wrong = |what: &dyn std::fmt::Display| {
        let (shown, usual) = (place.display().to_string(), crate::store::of_this_program());
        let usual = usual.display();
        Err(format!(
            "libckpt: nothing to recover in {shown:?}: {what}\n  name an image or a folder of images, or leave it out: then it is {usual}"
        ))
    };
    if place.as_os_str().is_empty() {
        return wrong(&"that is no name");
    }
    match std::fs::metadata(place) {
        Err(error) => wrong(&error),
        Ok(data) if !data.is_dir() => wrong(&"that is no folder"),
        Ok(_) => {
            let has = |name: &str| place.join(name).symlink_metadata().is_ok();
            let is_any = has(rewake_image::RECORDS_FILE) || has(store::LATEST);
            let is_any = is_any || store::list(place).is_ok_and(|all| !all.is_empty());
            if is_any { Ok(()) } else { wrong(&"there is no image in that folder") }
        }
    }
}

fn check(dir: &Path, wanted: &Wanted<'_>) -> Result<(), String> {
    let image = Image::open(dir).map_err(|error| format!("libckpt: {error}"))?;
    check_program(dir, &image)?;
    check_words(dir, &image, wanted)
}

/// The words that were given come before all others: it is the script that counts, not its interpreter.
fn check_words(dir: &Path, image: &Image, wanted: &Wanted<'_>) -> Result<(), String> {
    let command = &image.root().cmdline;
    let mut then = command.split(|byte| *byte == 0).skip(1);
    if wanted.words.iter().flatten().all(|word| then.next() == Some(word.to_bytes())) {
        return Ok(());
    }
    let (shown, command) = (dir.display(), rewake_image::describe::command(command));
    Err(format!(
        "libckpt: {shown} is an image of {command}\n  name the image (=recover DIR), or give the words it was started with"
    ))
}

/// The image itself, or the latest complete one of a store. Damaged ones are told of.
fn latest(place: &Path) -> Result<PathBuf, String> {
    let shown = place.display();
    let nothing = |error: &dyn std::fmt::Display, remedy: &str| {
        format!("libckpt: nothing to recover in {shown}: {error}\n  {remedy}")
    };
    const FIRST: &str = "make a checkpoint first: ckpt PID";
    let dir = match store::resolve(place) {
        Ok(dir) => dir,
        Err(ImageError::NoCompleteImage { .. }) => {
            let damaged = store::list(place).unwrap_or_default();
            let reason = damaged.iter().find_map(|image| Some((&image.name, store::broken(&image.path)?)));
            return Err(match reason {
                None => nothing(&"no complete image in this store", FIRST),
                Some((name, why)) => nothing(
                    &format_args!("no complete image in this store; image {name} is damaged: {why}"),
                    &format!("rewake list {shown} shows what is wrong with each image"),
                ),
            });
        }
        Err(error) => return Err(nothing(&error, FIRST)),
    };
    if let Some(latest) = store::linked(place).filter(|latest| *latest != dir)
        && let Some(why) = store::broken(&latest)
    {
        eprintln!("libckpt: {} is damaged: {why}; recovering {}", latest.display(), dir.display());
    }
    Ok(dir)
}

/// It must be of this very program: by its build id and its size, as somebody may have given one id to several programs; where it has
/// none, by its size and the time when it was written.
fn check_program(dir: &Path, image: &Image) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt as _;
    let shown = dir.display();
    let failed = |error: &dyn std::fmt::Display| format!("libckpt: {error}");
    let exe = image.root().memory.as_ref().and_then(|memory| memory.exe.as_ref());
    let Some(then) = exe.and_then(|exe| exe.identity.as_ref()) else {
        return Err(format!("libckpt: {shown} does not say of which program it is"));
    };
    let own = Path::new("/proc/self/exe");
    let now = std::fs::metadata(own).map_err(|error| failed(&error))?;
    let (same, how) = if then.build_id.is_empty() {
        let time = (now.mtime(), now.mtime_nsec());
        let same = then.size == now.size() && (then.mtime_s, i64::from(then.mtime_ns)) == time;
        (same, "which has no build id, and another size or time".to_owned())
    } else {
        let id = build_id::of(own);
        let how = if id == then.build_id {
            format!("of the same build id and {} bytes, this one has {}", then.size, now.size())
        } else {
            format!("build id {}, this one has {}", hexadecimal(&then.build_id), hexadecimal(&id))
        };
        (id == then.build_id && then.size == now.size(), how)
    };
    if same {
        return Ok(());
    }
    let path = then.as_path().display();
    Err(format!(
        "libckpt: {shown} is an image of another program, {path} ({how})\n  recover it with that program, as it was when the image was made"
    ))
}

fn hexadecimal(id: &[u8]) -> String {
    if id.is_empty() { "none".to_owned() } else { id.iter().map(|byte| format!("{byte:02x}")).collect() }
}
