//! What can be said on the command line, and the texts that explain it.

mod choices;
pub mod inside;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ColorChoice, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum, ValueHint};

pub use choices::{Compress, Engine, Mode};
pub use inside::{Ckpt, Run};

/// Exit status of a failed command.
const FAILED: u8 = 1;
/// Exit status after a command line that makes no sense.
const USAGE: u8 = 2;
/// Exit status of `resume` and `run` for their own failures, whatever they are, so that they never look like the program's (as `env`, `timeout`).
const RESUME_FAILED: u8 = 125;

/// Freeze running Linux programs to disk and wake them later.
///
/// A running, unmodified program is captured into an image, a directory of two files; from the image it is woken again, after a
/// crash, a reboot or a pre-emption, and goes on where it was.
#[derive(Debug, Parser)]
#[command(name = "rewake", version, max_term_width = 100, after_help = REWAKE_EXAMPLES)]
pub struct Rewake {
    #[command(subcommand)]
    command: Command,
}

const REWAKE_EXAMPLES: &str = "\
EXAMPLES
  rewake save -p 4711 -d ./image     capture process 4711 into ./image; it runs on
  rewake show ./image                what is in the image
  rewake resume -d ./image           wake the program in this terminal
  rewake run --preload -- ./sim      start a program that can checkpoint itself
  rewake ckpt 4711                   have it do so

Called by the name chkpnt (as rewake save), resume or ckpt, it is that command.";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    #[command(visible_alias = "chkpnt")]
    Save(Chkpnt),
    Resume(Resume),
    Ckpt(Ckpt),
    Run(Run),
    Show(Show),
    Verify(Verify),
    List(List),
    #[command(hide = true)]
    Generate(Generate),
}

/// Capture a running program into an image.
///
/// The program is frozen for a moment, its memory and state are written, and it goes on as if nothing had happened. The image appears
/// whole or not at all: it is written beside DIR under a temporary name, made durable and renamed. What cannot be captured is listed,
/// with remedies, before anything is frozen.
///
/// Exit status: 0 the image is complete and durable; 1 it failed, there is no image and the program runs on; 2 the command line was
/// wrong.
#[derive(Debug, Parser)]
#[command(name = "chkpnt", version, max_term_width = 100, after_help = CHKPNT_EXAMPLES)]
pub struct Chkpnt {
    /// The process to capture. You must be its owner, or root
    #[arg(short, long, value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    pub pid: i32,

    /// The image to write: a directory that does not exist yet, in one that does [default: ./rewake-PID-N, the first N that is free]
    #[arg(short, long, value_name = "DIR", value_hint = ValueHint::AnyPath)]
    pub dir: Option<PathBuf>,

    /// Kill the program as soon as the image is durable; without it, the program runs on
    #[arg(long)]
    pub kill: bool,

    /// Whose content goes into the image besides memory: 0 no file's (path, position and flags only), 1 files open for writing, 2 all
    /// open regular files, 3 mapped files, executable and libraries too. Files that have no name any more go in at every level
    #[arg(long, value_name = "LEVEL", default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=3))]
    pub files: u8,

    /// How memory is compressed in the image
    #[arg(long, value_name = "METHOD", value_enum, default_value_t = Compress::None)]
    pub compress: Compress,

    /// How memory is saved of a program that runs on
    #[arg(long, value_name = "MODE", value_enum, default_value_t = Mode::Auto)]
    pub mode: Mode,

    /// Who reaches into the program
    #[arg(long, value_name = "ENGINE", value_enum, default_value_t = Engine::Auto)]
    pub engine: Engine,

    /// Print one JSON object instead of the summary line, on standard output: image, pid, processes, threads, image_bytes,
    /// memory_bytes (before compression), killed, paused_ms, total_ms, mb_per_s, notes
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub common: Common,
}

const CHKPNT_EXAMPLES: &str = "\
EXAMPLES
  chkpnt -p 4711                         capture process 4711 into ./rewake-4711-1; it runs on
  chkpnt -p $(pidof -s sim) -d /save/a   choose where the image goes
  chkpnt -p 4711 -d /save/a --kill       capture it and end it, to wake it later or elsewhere
  chkpnt -p 4711 --compress zstd         a smaller image, for more work while it is written
  resume -d /save/a                      wake it";

/// Wake a program from its image.
///
/// resume stays in the foreground and stands for the program: the program gets the terminal, Ctrl-C and Ctrl-Z reach it, signals sent
/// to resume are passed on to it, and its exit status (or the signal it died of) becomes resume's.
///
/// Exit status: the program's; 125 if resume itself failed, and then nothing was started.
#[derive(Debug, Parser)]
#[command(name = "resume", version, max_term_width = 100, after_help = RESUME_EXAMPLES)]
pub struct Resume {
    /// The image; or a store (a folder of numbered images), whose latest complete image is taken
    #[arg(short, long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,

    /// Put files that the program had open for writing back as they were at the capture, all or none with its memory: short for
    /// --on-changed restore
    #[arg(short = 'o', conflicts_with = "on_changed")]
    pub overwrite: bool,

    /// What to do about a file that changed since the capture (another inode, size or time of change). A file that the program
    /// only reads is never overwritten: if its content is in the image (chkpnt --files 2 or 3), the program gets that for itself
    #[arg(long, value_name = "ACTION", value_enum, default_value_t = OnChanged::Error)]
    pub on_changed: OnChanged,

    /// Return as soon as the program runs, in a session of its own, and print its pid
    #[arg(long)]
    pub detach: bool,

    /// Which process and thread ids the program gets
    #[arg(long, value_name = "WHICH", value_enum, default_value_t = Pids::Auto)]
    pub pids: Pids,

    /// Where the program's System V objects come from: shared memory segments, semaphores, message queues
    #[arg(long, value_name = "WHICH", value_enum, default_value_t = Ipc::Auto)]
    pub ipc: Ipc,

    /// What becomes of unix sockets for datagrams that were connected to another program's, as to that of the system log (/dev/log)
    #[arg(long, value_name = "WHICH", value_enum, default_value_t = OutsideSockets::Reconnect)]
    pub outside_sockets: OutsideSockets,

    /// What the program's clocks that count from the start of the host show (CLOCK_MONOTONIC, CLOCK_BOOTTIME). Left out, they are what the
    /// program had: the host's, or its own if they were kept before
    #[arg(long, value_name = "WHICH", value_enum)]
    pub clock: Option<Clock>,

    /// Print the system calls that would wake the program, one a line, and start nothing
    #[arg(long, conflicts_with_all = ["detach", "json"])]
    pub plan: bool,

    /// Print one JSON object when the program runs: image, pid, inner_pid, threads, memory_bytes, total_ms, mb_per_s,
    /// files_put_back, files_private, notes. On standard output with --detach, else on standard error, since standard output is
    /// then the program's
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub common: Common,
}

const RESUME_EXAMPLES: &str = "\
EXAMPLES
  resume -d ./rewake-4711-1              wake the program here, in this terminal
  resume -d /save                        the latest complete image of the store /save
  resume -d /save/a --detach             wake it in the background and print its pid
  resume -d /save/a -o                   put back the files it was writing, then wake it
  resume -d /save/a --plan | less        how it would be woken";

/// What to do about changed files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnChanged {
    /// Refuse, and name the file and what can be done
    Error,
    /// Put back, in place, files that the program had open for writing. The bytes that they have now are kept in the image until the
    /// program runs: if anything fails before, or resume dies, they get them back, at once or by the next rewake command. Refused for
    /// files that others have open for writing
    Restore,
    /// Take the file as it is now
    AsIs,
}

/// Which ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Pids {
    /// The same if permitted, else as namespace
    Auto,
    /// The same, or fail
    Same,
    /// The same, in a pid namespace of its own
    Namespace,
}

/// Which System V objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Ipc {
    /// Those it left behind, or new ones with the same ids if permitted; else as namespace
    Auto,
    /// Those it left behind, or new ones with the same ids; or fail
    Same,
    /// New ones with the same ids, in an IPC namespace of its own
    Namespace,
}

/// Where sockets lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutsideSockets {
    /// To whoever has that address now; if nobody has, the resume fails
    Reconnect,
    /// Nowhere, as if that other program had ended; a program that uses syslog(3) finds the system log again by itself
    DeadEnd,
}

/// Which clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Clock {
    /// Go on where they were; takes CAP_SYS_ADMIN and CAP_SYS_TIME, or --pids namespace
    Keep,
    /// The host's
    Go,
}

/// Show what is in an image: processes, threads, memory, files, and what the host must have.
#[derive(Debug, Parser)]
#[command(
    name = "show",
    after_help = "EXAMPLES
  rewake show ./rewake-4711-1
  rewake show /save                      the latest image of a store
  rewake show ./image --json | jq '.processes[].threads | length'"
)]
pub struct Show {
    /// The image, or a store
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
    /// Print one JSON object with the same content; sizes in bytes, addresses and ids as numbers
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub common: Common,
}

/// Check every byte of an image against its checksums.
///
/// Exit status: 0 the image is whole; 1 it is damaged or incomplete, and the message says where.
#[derive(Debug, Parser)]
#[command(
    name = "verify",
    after_help = "EXAMPLES
  rewake verify ./rewake-4711-1
  rewake verify /save && echo the latest image of the store is good"
)]
pub struct Verify {
    /// The image, or a store
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
    /// Print one JSON object on standard output: image, ok, bytes, total_ms, mb_per_s
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub common: Common,
}

/// List the images in a store (a folder of images): the latest, and those that are incomplete and why.
#[derive(Debug, Parser)]
#[command(
    name = "list",
    after_help = "EXAMPLES
  rewake list /save
  rewake list . --json"
)]
pub struct List {
    /// The store: a folder with images in it
    #[arg(value_name = "STORE", value_hint = ValueHint::DirPath)]
    pub store: PathBuf,
    /// Print one JSON object with the same content
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub common: Common,
}

/// Write manual pages or shell completions into a directory.
#[derive(Debug, Parser)]
#[command(name = "generate")]
pub struct Generate {
    /// What to write
    #[arg(value_enum)]
    pub what: Generated,
    /// Where to: a directory, made if need be
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
    #[command(flatten)]
    pub common: Common,
}

/// What [`Generate`] writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Generated {
    /// Manual pages, section 1
    Man,
    /// Completions for bash, zsh and fish
    Completions,
}

/// Options of every command.
#[derive(Debug, Args)]
pub struct Common {
    /// Say on standard error what is being done (-vv: in detail; the environment variable REWAKE_LOG filters, as in rewake_capture=debug)
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// When to use colours
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = ColorChoice::Auto)]
    pub color: ColorChoice,
}

impl Command {
    /// The options that all commands have.
    pub fn common(&self) -> &Common {
        match self {
            Self::Save(options) => &options.common,
            Self::Resume(options) => &options.common,
            Self::Ckpt(options) => &options.common,
            Self::Run(options) => &options.common,
            Self::Show(options) => &options.common,
            Self::Verify(options) => &options.common,
            Self::List(options) => &options.common,
            Self::Generate(options) => &options.common,
        }
    }

    /// The exit status when the command fails.
    pub fn failure_status(&self) -> u8 {
        if matches!(self, Self::Resume(_) | Self::Run(_)) { RESUME_FAILED } else { FAILED }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Save(_) => "rewake save",
            Self::Resume(_) => "rewake resume",
            Self::Ckpt(_) => "rewake ckpt",
            Self::Run(_) => "rewake run",
            Self::Show(_) => "rewake show",
            Self::Verify(_) => "rewake verify",
            Self::List(_) => "rewake list",
            Self::Generate(_) => "rewake generate",
        }
    }
}

/// What the user wants, and under which name.
pub struct Invocation {
    /// How messages name the command.
    pub name: &'static str,
    /// The command with its options.
    pub command: Command,
}

/// A command line that is not to be carried out: wrong, or a call for help.
pub struct Rejected {
    text: clap::Error,
    usage_status: u8,
}

impl Rejected {
    /// Says so, on the stream that fits, and gives the exit status.
    pub fn print(self) -> ExitCode {
        // Nobody is left to be told when this fails.
        let _ = self.text.print();
        ExitCode::from(if self.text.use_stderr() { self.usage_status } else { 0 })
    }
}

/// Reads the command line, whose first word is the name the program was called by.
pub fn parse(arguments: &[OsString]) -> Result<Invocation, Rejected> {
    let called = arguments.first().and_then(|name| Path::new(name).file_name()).unwrap_or_default();
    let color = color_of(arguments);
    if called == "chkpnt" {
        let command = read::<Chkpnt>(arguments, color, USAGE)?;
        return Ok(Invocation { name: "chkpnt", command: Command::Save(command) });
    }
    if called == "resume" {
        let command = read::<Resume>(arguments, color, RESUME_FAILED)?;
        return Ok(Invocation { name: "resume", command: Command::Resume(command) });
    }
    if called == "ckpt" {
        let command = read::<Ckpt>(arguments, color, USAGE)?;
        return Ok(Invocation { name: "ckpt", command: Command::Ckpt(command) });
    }
    let waking = arguments.get(1).is_some_and(|word| word == "resume" || word == "run");
    let Rewake { command } = read::<Rewake>(arguments, color, if waking { RESUME_FAILED } else { USAGE })?;
    Ok(Invocation { name: command.name(), command })
}

fn read<P: CommandFactory + FromArgMatches>(
    arguments: &[OsString],
    color: ColorChoice,
    usage_status: u8,
) -> Result<P, Rejected> {
    P::command()
        .color(color)
        .try_get_matches_from(arguments)
        .and_then(|matches| P::from_arg_matches(&matches))
        .map_err(|text| Rejected { text, usage_status })
}

/// The value of `--color`, found without understanding the rest: help and usage errors obey it, too.
fn color_of(arguments: &[OsString]) -> ColorChoice {
    let words: Vec<&str> = arguments.iter().filter_map(|word| OsStr::to_str(word)).collect();
    let spaced = words.windows(2).find(|pair| pair[0] == "--color").map(|pair| pair[1]);
    spaced
        .or_else(|| words.iter().find_map(|word| word.strip_prefix("--color=")))
        .and_then(|value| ColorChoice::from_str(value, true).ok())
        .unwrap_or(ColorChoice::Auto)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(words: &[&str]) -> Result<Invocation, Rejected> {
        parse(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn the_definitions_are_consistent() {
        Rewake::command().debug_assert();
        Chkpnt::command().debug_assert();
        Resume::command().debug_assert();
        Ckpt::command().debug_assert();
    }

    #[test]
    fn the_name_it_was_called_by_selects_the_command() {
        for words in [
            &["/usr/bin/chkpnt", "-p", "7"][..],
            &["rewake", "save", "-p", "7"],
            &["./anything", "chkpnt", "--pid=7"],
        ] {
            let Ok(Invocation { command: Command::Save(options), .. }) = command(words) else {
                panic!("{words:?}")
            };
            assert_eq!(options.pid, 7);
        }
        let resume = command(&["resume", "-d", "x", "-o"]).ok().expect("parses");
        assert!(matches!(resume.command, Command::Resume(Resume { overwrite: true, .. })));
    }

    #[test]
    fn a_wrong_command_line_of_resume_is_told_from_the_programs_failures() {
        for (words, status) in [
            (&["resume"][..], RESUME_FAILED),
            (&["rewake", "resume", "--nonsense"], RESUME_FAILED),
            (&["chkpnt"], USAGE),
            (&["rewake", "nonsense"], USAGE),
        ] {
            let rejected = command(words).err().expect("is refused");
            assert_eq!(rejected.usage_status, status, "{words:?}");
        }
    }

    #[test]
    fn colours_are_known_before_the_rest_is_understood() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert_eq!(color_of(&words("chkpnt --bad --color=never")), ColorChoice::Never);
        assert_eq!(color_of(&words("chkpnt --color always --bad")), ColorChoice::Always);
        assert_eq!(color_of(&words("chkpnt")), ColorChoice::Auto);
    }
}
