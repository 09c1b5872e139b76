//! Files on their way into a container that runs, and out of it.
//!
//! One end is here; the other is a child that has entered the container's namespaces, so that the kernel resolves its names
//! where the container would. They are joined by a socket with a stream of their own ([`stream`]): names in it are single
//! ones, put into directories that are open already, so that no link leads anywhere else, whoever changes the tree
//! meanwhile.

mod receive;
mod send;
mod stream;

use std::io;
use std::path::Path;

use nix::sys::stat::{Mode, umask};

use self::receive::Receiver;
use super::channel::{Channel, Report};
use super::exec::Inside;
use super::{child, exec, identity};
use crate::config::{Identity, Mapping};
use crate::error::{Context, Error, Result, exit};
use crate::sys::process::Child;

const VISITOR: &str = "the process that enters the container";

/// Copies `source` of the host to `destination` inside, where it belongs to root; `follow` what it is a link to. No thread
/// may have been started before.
pub fn copy_in(inside: Inside<'_>, source: &Path, destination: &Path, follow: bool) -> Result<()> {
    let (channel, child) = visit(inside, |channel| {
        receive::receive(channel.stream(), &Receiver { destination, keeps_set_id: true })?;
        channel.ready().context("cannot report to", "parent")
    })?;
    let sent = send::send(channel.stream(), source, follow);
    let told = channel.receive();
    let _ = child.reap();
    // Its own end may be all that a failing sender notices of a failing receiver.
    match (told.context("cannot hear from", VISITOR)?, sent) {
        (Some(Report::Ready), Ok(())) => Ok(()),
        (Some(Report::Failed(error)), Ok(()) | Err(_)) => Err(error),
        (_, Err(error)) => Err(error),
        _ => Err(Error::new("cannot hear from", VISITOR, "it died")),
    }
}

/// Copies `source` inside to `destination` of the host, where it belongs to the caller and loses its set-id bits.
pub fn copy_out(inside: Inside<'_>, source: &Path, destination: &Path, follow: bool) -> Result<()> {
    let (channel, child) = visit(inside, |channel| send::send(channel.stream(), source, follow))?;
    let before = umask(Mode::empty());
    let received = receive::receive(channel.stream(), &Receiver { destination, keeps_set_id: false });
    umask(before);
    drop(channel);
    let _ = child.reap();
    received
}

/// Has a child do `work` inside, as root; this end of the socket that joins the two.
fn visit(inside: Inside<'_>, work: impl FnOnce(&Channel) -> Result<()>) -> Result<(Channel, Child)> {
    let (ours, theirs) = Channel::pair().context("cannot create", "socket pair")?;
    let child = exec::spawn(inside, theirs, |channel| {
        let entered = child::die_with_parent()
            .and_then(|()| identity::become_user(&Identity { mapping: Mapping::Auto, user: None }))
            .and_then(|_| child::die_with_parent());
        umask(Mode::empty());
        match entered.and_then(|()| work(&channel)) {
            Ok(()) => 0,
            Err(error) => {
                channel.failed(&error);
                exit::RNET_FAILED
            }
        }
    })?;
    Ok((ours, child))
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the other end said what it cannot mean")
}
