//! The command line of Rewake.
//!
//! One binary with several names: called `chkpnt` it captures a running program, called `resume` it wakes one, called `ckpt` it asks
//! one to capture itself, and `rewake` has all of them (`rewake save`, `rewake resume`, `rewake ckpt`) and the commands that look at
//! images. What a command does stands in the module of its name; this one only finds out which is meant and turns its outcome into
//! output and exit status.

mod args;
mod chkpnt;
mod ckpt;
mod failure;
mod foreground;
mod format;
mod generate;
mod list;
mod logging;
mod output;
mod place;
mod preload;
mod progress;
mod resume;
mod show;
mod table;
mod verify;
mod waiting;

use std::ffi::OsString;
use std::process::ExitCode;

use args::{Command, Invocation};
use failure::Failure;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let invocation = match args::parse(&arguments) {
        Ok(invocation) => invocation,
        Err(rejected) => return rejected.print(),
    };
    if let Err(error) = rewake_restore::putback::give_up_rights_of_our_file() {
        let failure = Failure::new(format_args!("giving up the rights of the binary's file failed: {error}"));
        failure.print(invocation.name, invocation.command.common());
        return ExitCode::from(invocation.command.failure_status());
    }
    logging::start(invocation.command.common());
    waiting::everywhere();
    let Invocation { name, command } = invocation;
    let outcome = match &command {
        Command::Save(options) => chkpnt::run(options),
        Command::Resume(options) => resume::run(options),
        Command::Ckpt(options) => ckpt::run(options),
        Command::Run(options) => preload::run(options),
        Command::Show(options) => show::run(options),
        Command::Verify(options) => verify::run(options),
        Command::List(options) => list::run(options),
        Command::Generate(options) => generate::run(options),
    };
    match outcome {
        Ok(status) => status,
        Err(failure) => {
            failure.print(name, command.common());
            ExitCode::from(command.failure_status())
        }
    }
}
