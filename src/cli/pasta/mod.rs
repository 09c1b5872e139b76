//! The command line of pasta(1).
//!
//! Options, defaults, the order of the checks and the words that callers look for are the original's. It is understood
//! in two steps, as a guest's network is modelled on the host's: [`parse`] reads the options, and [`Spec::settle`]
//! joins them with what the host has. What an option means to rnet beyond that is in docs/compat.md.

mod naming;
mod options;
pub(super) mod pesto;
mod ports;
mod settle;
#[cfg(test)]
mod tests;

use std::ffi::OsString;

use self::options::{HELP, Options, Stop};
pub use self::pesto::{Change, Pesto};
use super::{Surroundings, Usage};
use crate::config::{HostNetwork, Pasta};

/// The name that it answers to.
pub(super) const NAME: &str = "pasta";

/// A command line whose options are right by themselves.
#[derive(Debug)]
pub struct Spec(Options);

/// Understands `words`, which begin after the program's name.
pub(super) fn parse(words: impl Iterator<Item = OsString>) -> Result<Spec, Usage> {
    Options::read(words).map(Spec).map_err(|stop| match stop {
        Stop::Help => Usage::text(HELP.to_owned()),
        Stop::Version => Usage::text(format!("pasta {} (rnet)\n", env!("CARGO_PKG_VERSION"))),
        Stop::Usage(line) => Usage::failed(String::new(), format!("{line}\n{HELP}")),
        Stop::Mistake(line) => Usage::failed(String::new(), format!("{line}\n")),
    })
}

impl Spec {
    /// The configuration for a host that has `host`, and remarks about it. The error is a whole line for the user.
    pub fn settle(
        self,
        host: &HostNetwork,
        surroundings: &Surroundings,
    ) -> Result<super::Request<Pasta>, String> {
        settle::settle(self.0, host, surroundings)
    }
}
