//! rnet gives a process its own network on Linux, without root.
//!
//! The map, outermost first:
//!
//! - [`run`], [`exec`], [`cp`], [`attach`], [`pasta`], [`hello`]: the parts put together; [`serve`] is what they share.
//! - [`cli`]: argv becomes a [`config::Config`]; pure.
//! - [`container`]: the launcher: namespaces, root filesystem, the command and its signals.
//! - [`image`]: archives as root filesystems: understood, unpacked into a cache, and used from there.
//! - [`oci_hook`], [`cni`]: the calls of container runtimes, carried out through [`attach`] and [`control`].
//! - [`containers`]: commands about containers that are on record.
//! - [`state`]: what is known of containers, as a record of each.
//! - [`control`], [`port`], [`pesto`]: how other programs speak to a running network, and the commands that do.
//! - [`io`]: the shell around the core: links, host sockets and the worker's event loop.
//! - [`net`]: the core: a user-mode router as a pure state machine, without fd, thread, clock or file.
//! - [`sys`]: every `unsafe` block and raw kernel interface.
//! - [`etc`]: the formats of `/etc`, read from the host and written for the guest.
//! - `disk`: directories of rnet's own on the disk.
//! - [`log`]: log lines on standard error.
//! - [`manual`]: completions and manual pages, from the description of the command line.
//! - [`config`], [`error`]: plain values that the others share.
//!
//! Dependencies point one way: `main -> cli -> {config, etc}`, `main -> run -> container -> sys`,
//! `run -> image -> sys`, `run -> io -> {net, sys, etc}`, `run -> state -> control -> {io, sys}`, `net -> config`.

pub mod attach;
pub mod cli;
pub mod cni;
pub mod config;
pub mod container;
pub mod containers;
pub mod control;
pub mod cp;
mod disk;
pub mod error;
pub mod etc;
pub mod exec;
pub mod hello;
pub mod image;
pub mod io;
pub mod layers;
pub mod log;
pub mod manual;
pub mod net;
pub mod network;
pub mod oci_hook;
pub mod pasta;
pub mod pesto;
pub mod port;
pub mod run;
pub mod serve;
pub mod state;
pub mod sys;
