//! What the command line's own description is turned into: completions for shells, and manual pages.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate};
use clap_mangen::Man;

use super::args::RnetArgs;

/// The command's name.
const NAME: &str = "rnet";

/// What is wanted of the description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Manual {
    /// A script that completes rnet's command line in a shell.
    Completions(Shell),
    /// Manual pages: rnet's own, or all as files of this directory.
    Pages(Option<PathBuf>),
}

/// The script that completes rnet's command line in `shell`.
pub fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    generate(shell, &mut RnetArgs::command(), NAME, &mut script);
    script
}

/// All manual pages with their files' names, rnet's own first.
pub fn pages() -> std::io::Result<Vec<(OsString, Vec<u8>)>> {
    let mut command = RnetArgs::command();
    command.build();
    let mut pages = Vec::new();
    collect(&command, &mut pages)?;
    Ok(pages)
}

fn collect(command: &Command, pages: &mut Vec<(OsString, Vec<u8>)>) -> std::io::Result<()> {
    let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
    let mut page = Vec::new();
    Man::new(command.clone()).title(name.clone()).render(&mut page)?;
    pages.push((format!("{name}.1").into(), page));
    let mut shown =
        command.get_subcommands().filter(|below| !below.is_hide_set() && below.get_name() != "help");
    shown.try_for_each(|below| collect(below, pages))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_has_completions() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::Elvish, Shell::PowerShell] {
            let script = String::from_utf8(completions(shell)).expect("text");
            assert!(script.contains("rnet") && script.contains("publish"), "{shell}");
        }
    }

    #[test]
    fn every_command_has_a_page() {
        let pages = pages().expect("they are written to memory");
        let names: Vec<String> = pages.iter().map(|(name, _)| name.to_string_lossy().into_owned()).collect();
        for name in ["rnet.1", "rnet-run.1", "rnet-port-add.1", "rnet-stop.1"] {
            assert!(names.iter().any(|known| known == name), "{names:?}");
        }
        assert!(!names.iter().any(|name| name.contains("hello-guest")), "{names:?}");
        let (_, run) = pages.iter().find(|(name, _)| name == "rnet-run.1").expect("it is there");
        let run = String::from_utf8_lossy(run);
        assert!(run.contains("\\-\\-publish") && !run.contains("resume"), "{run}");
    }
}
