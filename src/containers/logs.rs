//! `rnet logs`.

use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::config::{Logs, Since};
use crate::error::{Context, Error, Result};
use crate::state::{self, Entry, LogReader, Stream, Timestamp, Wanted};

/// Prints what is wanted, each line where the command has written it.
pub(super) fn print(wanted: &Logs) -> Result<u8> {
    let container = state::find(&wanted.name)?;
    if container.record.log_path.is_empty() {
        return Err(Error::new("no output is kept of", &wanted.name, "it was started in the foreground")
            .hint("its output is where it was started; with --detach it is kept"));
    }
    let since = wanted.since.as_ref().map(moment).transpose()?;
    // Before anything is read: what comes later wakes.
    let follow = match (wanted.follow, container.keeper()) {
        (true, Some(keeper)) => Some((keeper, changes_in(container.directory())?)),
        _ => None,
    };
    let mut log = container.log();
    let first = Wanted { since, tail: wanted.tail };
    let shown = show(&mut log, first, wanted.timestamps).and_then(|()| match follow {
        Some((keeper, changes)) => {
            follow_until_end(&mut log, &keeper, &changes, Wanted { tail: None, ..first }, wanted.timestamps)
        }
        None => Ok(()),
    });
    match shown {
        // As with `| head`.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(0),
        done => done.context("cannot print the output of", &wanted.name).map(|()| 0),
    }
}

fn moment(since: &Since) -> Result<Timestamp> {
    match since {
        Since::Ago(ago) => Ok(Timestamp::now().earlier(*ago)),
        Since::Epoch(since) => Ok(Timestamp::at(*since)),
        Since::Moment(text) => text.parse().map_err(|()| {
            Error::new("cannot understand", text, "no such moment")
                .hint("such as 2026-01-31T12:00:00Z, in UTC")
        }),
    }
}

fn changes_in(directory: &Path) -> Result<Inotify> {
    let wanted = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
    let changes = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK);
    changes
        .and_then(|changes| changes.add_watch(directory, wanted).map(|_| changes))
        .context("cannot watch", directory.display())
}

/// Shows what comes until the container's `keeper` has ended.
fn follow_until_end(
    log: &mut LogReader,
    keeper: &OwnedFd,
    changes: &Inotify,
    wanted: Wanted,
    timestamps: bool,
) -> io::Result<()> {
    loop {
        let mut polled = [keeper.as_fd(), changes.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut polled, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            done => done?,
        };
        let ended = polled[0].any().unwrap_or(true);
        // What has changed does not matter, only that it is read.
        while changes.read_events().is_ok_and(|events| !events.is_empty()) {}
        show(log, wanted, timestamps)?;
        if ended {
            return Ok(());
        }
    }
}

fn show(log: &mut LogReader, wanted: Wanted, timestamps: bool) -> io::Result<()> {
    let (mut stdout, mut stderr) = (io::stdout().lock(), io::stderr().lock());
    log.read(wanted, |entry| match entry.stream {
        Stream::Stdout => line(&mut stdout, entry, timestamps),
        Stream::Stderr => line(&mut stderr, entry, timestamps),
    })?;
    stdout.flush()
}

fn line(to: &mut impl Write, entry: &Entry, timestamps: bool) -> io::Result<()> {
    if timestamps {
        write!(to, "{} ", entry.time)?;
    }
    to.write_all(entry.log.as_bytes())
}
