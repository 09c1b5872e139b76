//! `rnet hello`, the first command that anybody runs.

use std::process::Command;

use crate::lab::{Host, Link};
use crate::process::{Outcome, Process};

over_links![greets_a_user];
over_any_link![greets_root];

fn greets_a_user(host: &Host) {
    let link = if host.link() == Link::Packet { "packet" } else { "tap" };
    assert_greeting(&host.start_rnet(&["hello"]).wait(), link);
}

fn greets_root(host: &Host) {
    let mut command = Command::new("/mnt/rnet");
    command.arg("hello").env_clear().current_dir("/");
    assert_greeting(&Process::start(host.space(), command).wait(), "");
}

fn assert_greeting(outcome: &Outcome, link: &str) {
    assert_eq!(outcome.code(), 0, "{outcome}");
    let lines = outcome.stdout.lines().count();
    assert!((5..=20).contains(&lines), "{lines} lines: {outcome}");
    assert!(outcome.stdout.contains(link), "{outcome}");
    assert_eq!(outcome.stderr, "", "{outcome}");
}
