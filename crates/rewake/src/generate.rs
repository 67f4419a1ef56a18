//! `rewake generate`: manual pages and shell completions, made from the same definitions that read the command line.

use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::args::{Chkpnt, Generate, Generated, Resume, Rewake};
use crate::failure::Failure;

/// Writes what was asked for.
pub fn run(arguments: &Generate) -> Result<ExitCode, Failure> {
    let dir = arguments.dir.as_path();
    let write = match arguments.what {
        Generated::Man => man,
        Generated::Completions => completions,
    };
    fs::create_dir_all(dir)
        .and_then(|()| write(dir))
        .map_err(|error| Failure::new(format_args!("write failed ({}): {error}", dir.display())))?;
    Ok(ExitCode::SUCCESS)
}

fn tools() -> [Command; 3] {
    [Rewake::command(), Chkpnt::command(), Resume::command()]
}

fn man(dir: &Path) -> io::Result<()> {
    for tool in tools() {
        let name = tool.get_name().to_owned();
        for command in tool.get_subcommands().filter(|command| !command.is_hide_set()) {
            let page = format!("{name}-{}", command.get_name());
            write_page(dir, &page, command.clone().name(page.clone()).bin_name(page.replacen('-', " ", 1)))?;
        }
        write_page(dir, &name, tool)?;
    }
    Ok(())
}

fn write_page(dir: &Path, name: &str, command: Command) -> io::Result<()> {
    let mut page = Vec::new();
    Man::new(command).title(name.to_uppercase()).section("1").render(&mut page)?;
    fs::write(dir.join(format!("{name}.1")), page)
}

fn completions(dir: &Path) -> io::Result<()> {
    for mut tool in tools() {
        let name = tool.get_name().to_owned();
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            clap_complete::generate_to(shell, &mut tool, &name, dir)?;
        }
    }
    Ok(())
}
