//! argv becomes a [`Config`]; pure.
//!
//! [`parse`] is all of it: the command line is read ([`args`]), single values are checked ([`values`]) and
//! then settled together with the [`Surroundings`] ([`settle`]). Nothing here looks at the system, so what
//! depends on it (does a volume's source exist, is a port free) is left to those who use it.

mod args;
mod docker;
mod options;
mod settle;
mod subnet;
mod values;

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser};
use ipnet::IpNet;

pub use self::options::{Options, named};
use crate::config::{Attach, Config, HookCall, LogLevel, Publish};
use crate::error::exit;
use args::{CommandArgs, RnetArgs};

/// What the environment says, collected by the caller.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The environment variables, in order.
    pub env: Vec<(OsString, OsString)>,
    /// The working directory, absolute.
    pub cwd: PathBuf,
    /// The host's name.
    pub hostname: String,
    /// Whether standard input is a terminal.
    pub stdin_is_tty: bool,
    /// Cores that rnet may use.
    pub cores: usize,
    /// Networks that the host has routes or addresses in; default routes may be among them.
    pub host_subnets: Vec<IpNet>,
    /// Random bytes, for the guest's MAC address and host name.
    pub random: [u8; 16],
}

/// What the user wants done.
#[derive(Clone, Debug)]
pub enum Command {
    /// `rnet run`: run a command in a container.
    Run(Request),
    /// `rnet attach`: give an existing namespace a network.
    Attach(Request<Attach>),
    /// `rnet port`, `rnet flows`: ask a running network.
    Ask(Question),
    /// `rnet oci-hook`: what an OCI runtime asks for.
    OciHook(HookCall),
    /// `rnet cni`: what a CNI runtime asks for.
    Cni,
    /// `rnet hello`: show that rnet works here. The container is one with an empty root, no volumes, no
    /// published ports and the command `/rnet`; the show itself fills in the rest.
    Hello(Request),
    /// The part of `rnet hello` that runs inside its container, with the address of the page outside.
    HelloGuest(SocketAddr),
}

/// A question to a running network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// What it is called.
    pub network: String,
    /// About what.
    pub topic: Topic,
    /// Prints the answer as it comes.
    pub json: bool,
}

/// What a network can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Topic {
    /// Which ports are published.
    Ports,
    /// To publish these.
    Publish(Vec<Publish>),
    /// To close these.
    Unpublish(Vec<Publish>),
    /// What goes on.
    Flows,
}

/// A settled configuration and what was decided on the way to it.
#[derive(Clone, Debug)]
pub struct Request<C = Config> {
    /// All that is needed to do it.
    pub config: Box<C>,
    /// To be logged once logging stands.
    pub notes: Vec<Note>,
}

/// A decision worth telling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// How much it matters.
    pub level: LogLevel,
    /// One line.
    pub text: String,
}

/// A command line that asks for nothing to be done: a mistake, `--help` or `--version`.
#[derive(Debug)]
pub struct Usage(clap::Error);

impl Usage {
    /// The status to exit with: 0 for help and version, else 125.
    pub fn code(&self) -> u8 {
        if self.0.use_stderr() { exit::RNET_FAILED } else { 0 }
    }

    /// Prints it where it belongs, in colours if that is a terminal.
    pub fn print(&self) -> std::io::Result<()> {
        self.0.print()
    }
}

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(&self.0.render(), f)
    }
}

impl std::error::Error for Usage {}

/// The name by which rnet is a CNI plugin, whatever its arguments.
const CNI_NAME: &str = "rnet-cni";

/// Understands a command line; `args` begins with the program's name.
pub fn parse(args: impl Iterator<Item = OsString>, surroundings: &Surroundings) -> Result<Command, Usage> {
    let mut args = args.peekable();
    if args.peek().is_some_and(|program| Path::new(program).file_name() == Some(OsStr::new(CNI_NAME))) {
        return Ok(Command::Cni);
    }
    match RnetArgs::try_parse_from(args).map_err(explained)?.command {
        CommandArgs::Run(run) => {
            settle::run(*run, surroundings).map(Command::Run).map_err(|cause| mistake("run", &cause))
        }
        CommandArgs::Attach(attach) => settle::attach(*attach, surroundings)
            .map(Command::Attach)
            .map_err(|cause| mistake("attach", &cause)),
        CommandArgs::Port { verb } => {
            settle::port(verb).map(Command::Ask).map_err(|cause| mistake("port", &cause))
        }
        CommandArgs::Flows { network, json } => {
            Ok(Command::Ask(Question { network, topic: Topic::Flows, json }))
        }
        CommandArgs::Hello(hello) => {
            settle::hello(hello, surroundings).map(Command::Hello).map_err(|cause| mistake("hello", &cause))
        }
        CommandArgs::OciHook { stage, prefix } => Ok(Command::OciHook(HookCall { stage, prefix })),
        CommandArgs::Cni => Ok(Command::Cni),
        CommandArgs::HelloGuest { outside } => Ok(Command::HelloGuest(outside)),
    }
}

/// Says of an unknown option what stands in for it, if it is one of docker's. Advice to put a `--` before it would
/// make it the root filesystem.
fn explained(mut error: clap::Error) -> Usage {
    if error.kind() == ErrorKind::UnknownArgument
        && let Some(ContextValue::String(option)) = error.get(ContextKind::InvalidArg)
    {
        let instead = docker::instead_of(option);
        error.remove(ContextKind::Suggested);
        if let Some(instead) = instead {
            error.remove(ContextKind::SuggestedArg);
            error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![instead.into()]));
        }
    }
    Usage(error)
}

/// A mistake that shows only when options are seen together.
fn mistake(subcommand: &str, cause: &str) -> Usage {
    let mut rnet = RnetArgs::command();
    rnet.build();
    let kind = ErrorKind::ValueValidation;
    Usage(match rnet.find_subcommand_mut(subcommand) {
        Some(command) => command.error(kind, cause),
        None => rnet.error(kind, cause),
    })
}

#[cfg(test)]
mod tests;
