//! `rewake generate`: manual pages and shell completions, made from the same definitions that read the command line.

use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::args::{Chkpnt, Ckpt, Generate, Generated, Resume, Rewake};
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

fn tools() -> [Command; 4] {
    [Rewake::command(), Chkpnt::command(), Resume::command(), Ckpt::command()]
}

fn man(dir: &Path) -> io::Result<()> {
    for tool in tools() {
        let name = tool.get_name().to_owned();
        for command in tool.get_subcommands().filter(|command| !command.is_hide_set()) {
            let page = format!("{name}-{}", command.get_name());
            write_page(dir, &page, command.clone().name(page.clone()).bin_name(page.replacen('-', " ", 1)))?;
        }
        write_page(dir, &name, tool.disable_help_subcommand(true))?;
    }
    Ok(())
}

fn write_page(dir: &Path, name: &str, command: Command) -> io::Result<()> {
    let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let has_commands = command.has_subcommands();
    let man = Man::new(command).title(name.to_uppercase()).section("1");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if has_commands {
        man.render_subcommands_section(&mut page)?;
    }
    page.extend_from_slice(verbatim(&examples).as_bytes());
    fs::write(dir.join(format!("{name}.1")), page)
}

/// The text after the options: its first line is the title of a section, the others are kept as they are.
fn verbatim(text: &str) -> String {
    let Some((title, lines)) = text.split_once('\n') else { return String::new() };
    let mut section = format!(".SH {title}\n.nf\n");
    for line in lines.lines() {
        // A dot or a quote at the beginning would be a request.
        let guard = if line.starts_with(['.', '\'']) { "\\&" } else { "" };
        let line = line.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq");
        section.push_str(&format!("{guard}{line}\n"));
    }
    section.push_str(".fi\n");
    section
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_keep_their_lines() {
        let section = verbatim("EXAMPLES\n  a -b 'c'\n.d \\");
        assert_eq!(section, ".SH EXAMPLES\n.nf\n  a \\-b \\(aqc\\(aq\n\\&.d \\e\n.fi\n");
        assert_eq!(verbatim(""), "");
    }
}
