//! argv becomes a [`Config`]; pure.
//!
//! [`parse`] is all of it: the command line is read ([`args`]), single values are checked ([`values`]) and
//! then settled together with the [`Surroundings`] ([`settle`]). Nothing here looks at the system, so what
//! depends on it (does a volume's source exist, is a port free) is left to those who use it.

mod allowance;
mod args;
mod confinement;
mod containers;
mod copy;
mod docker;
mod exec;
mod getopt;
mod identity;
mod image;
mod layers;
mod life;
mod manual;
mod mounts;
mod network;
mod options;
pub mod pasta;
mod settle;
mod slirp4netns;
mod subnet;
mod terminal;
mod values;

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser};
use ipnet::IpNet;

pub use self::manual::{Manual, completions, pages};
pub use self::options::{Options, named};
use crate::config::{
    Attach, CacheCall, Config, ContainersCall, Copy, Exec, HookCall, LayersCall, LogLevel, NetworkCommand,
    Publish, Slirp4netns,
};
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
    /// Random bytes, for the guest's MAC address and the container's id.
    pub random: [u8; RANDOM_BYTES],
}

/// Random bytes of [`Surroundings`]: 16 that stay secret, and the 32 of an id.
pub const RANDOM_BYTES: usize = 48;

/// What the user wants done.
#[derive(Debug)]
pub enum Command {
    /// `rnet run`: run a command in a container.
    Run(Request),
    /// `rnet attach`: give an existing namespace a network.
    Attach(Request<Attach>),
    /// `rnet port`, `rnet flows`: ask a running network.
    Ask(Question),
    /// `rnet network`: do something about networks that have a name.
    Network(NetworkCommand),
    /// `rnet exec`: run a further command in a container.
    Exec(Box<Exec>),
    /// `rnet image`: show or free what has been unpacked.
    Image(CacheCall),
    /// `rnet ps`, `rnet stop` and the like: something about containers that are on record.
    Containers(ContainersCall),
    /// `rnet layer`: named layers.
    Layers(LayersCall),
    /// `rnet cp`: copy files into a container or out of it.
    Copy(Copy),
    /// `rnet oci-hook`: what an OCI runtime asks for.
    OciHook(HookCall),
    /// `rnet cni`: what a CNI runtime asks for.
    Cni,
    /// `rnet completions`, `rnet man`: the command line in other shapes.
    Manual(Manual),
    /// `rnet hello`: show that rnet works here. The container is one with an empty root, no volumes, no
    /// published ports and the command `/rnet`; the show itself fills in the rest.
    Hello(Request),
    /// `rnet slirp4netns`: what slirp4netns(1) would do.
    Slirp4netns(Box<Slirp4netns>),
    /// `rnet pasta`: what pasta(1) would do, as far as the command line tells.
    Pasta(Box<pasta::Spec>),
    /// `rnet pesto`: what pesto(1) would do.
    Pesto(pasta::Pesto),
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
pub struct Usage(Text);

#[derive(Debug)]
enum Text {
    /// rnet's own.
    Rnet(clap::Error),
    /// That of a program whose name rnet carries.
    Other { stdout: String, stderr: String, code: u8 },
}

impl Usage {
    /// What another program would print on standard output when all is well.
    fn text(stdout: String) -> Self {
        Self(Text::Other { stdout, stderr: String::new(), code: 0 })
    }

    /// What another program would print about a mistake.
    fn failed(stdout: String, stderr: String) -> Self {
        Self(Text::Other { stdout, stderr, code: exit::IMITATED_FAILED })
    }

    /// The status to exit with: 0 for help and version, else 125, or 1 in place of another program.
    pub fn code(&self) -> u8 {
        match &self.0 {
            Text::Rnet(error) if error.use_stderr() => exit::RNET_FAILED,
            Text::Rnet(_) => 0,
            Text::Other { code, .. } => *code,
        }
    }

    /// Prints it where it belongs, of the standard streams that are passed in; rnet's own in colours if that is a
    /// terminal.
    pub fn print(&self, stdout: &mut impl Write, stderr: &mut impl Write) -> std::io::Result<()> {
        match &self.0 {
            Text::Rnet(error) => error.print(),
            Text::Other { stdout: out, stderr: err, .. } => {
                stderr.write_all(err.as_bytes())?;
                stdout.write_all(out.as_bytes())
            }
        }
    }
}

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Text::Rnet(error) => std::fmt::Display::fmt(&error.render(), f),
            Text::Other { stdout, stderr, .. } => write!(f, "{stderr}{stdout}"),
        }
    }
}

impl std::error::Error for Usage {}

/// The name by which rnet is a CNI plugin, whatever its arguments.
const CNI_NAME: &str = "rnet-cni";

/// Understands a command line; `args` begins with the program's name. Some names are those of other programs, and so
/// may be the first word.
pub fn parse(args: impl Iterator<Item = OsString>, surroundings: &Surroundings) -> Result<Command, Usage> {
    let args: Vec<OsString> = args.collect();
    if args.first().is_some_and(|program| Path::new(program).file_name() == Some(OsStr::new(CNI_NAME))) {
        return Ok(Command::Cni);
    }
    if let Some(words) = words_for(slirp4netns::NAME, &args) {
        return slirp4netns::parse(words.iter().cloned()).map(Box::new).map(Command::Slirp4netns);
    }
    if let Some(words) = words_for(pasta::NAME, &args) {
        return pasta::parse(words.iter().cloned()).map(Box::new).map(Command::Pasta);
    }
    if let Some(words) = words_for(pasta::pesto::NAME, &args) {
        return pasta::pesto::parse(words.iter().cloned()).map(Command::Pesto);
    }
    match RnetArgs::try_parse_from(args).map_err(explained)?.command {
        CommandArgs::Run(run) => {
            settle::run(*run, surroundings).map(Command::Run).map_err(|cause| mistake("run", &cause))
        }
        CommandArgs::Cp(copy) => {
            copy::settle(copy, surroundings).map(Command::Copy).map_err(|cause| mistake("cp", &cause))
        }
        CommandArgs::Exec(exec) => exec::settle(*exec, surroundings)
            .map(Box::new)
            .map(Command::Exec)
            .map_err(|cause| mistake("exec", &cause)),
        CommandArgs::Attach(attach) => settle::attach(*attach, surroundings)
            .map(Command::Attach)
            .map_err(|cause| mistake("attach", &cause)),
        CommandArgs::Port { verb } => {
            settle::port(verb).map(Command::Ask).map_err(|cause| mistake("port", &cause))
        }
        CommandArgs::Network { verb } => Ok(Command::Network(network::verb(verb))),
        CommandArgs::Flows { network, json } => {
            Ok(Command::Ask(Question { network, topic: Topic::Flows, json }))
        }
        CommandArgs::Image { verb } => Ok(Command::Image(image::call(verb, surroundings))),
        CommandArgs::Containers(call) => Ok(Command::Containers(containers::settle(call))),
        CommandArgs::Layer { verb } => {
            layers::settle(verb, surroundings).map(Command::Layers).map_err(|cause| mistake("layer", &cause))
        }
        CommandArgs::Hello(hello) => {
            settle::hello(hello, surroundings).map(Command::Hello).map_err(|cause| mistake("hello", &cause))
        }
        CommandArgs::OciHook { stage, prefix } => Ok(Command::OciHook(HookCall { stage, prefix })),
        CommandArgs::Cni => Ok(Command::Cni),
        CommandArgs::Completions { shell } => Ok(Command::Manual(Manual::Completions(shell))),
        CommandArgs::Man { directory } => Ok(Command::Manual(Manual::Pages(directory))),
        CommandArgs::HelloGuest { outside } => Ok(Command::HelloGuest(outside)),
    }
}

/// Whether the command line may leave the choice of addresses to rnet, for which [`Surroundings::host_subnets`] must be
/// known.
pub fn chooses_addresses(args: &[OsString]) -> bool {
    [slirp4netns::NAME, pasta::NAME, pasta::pesto::NAME].iter().all(|name| words_for(name, args).is_none())
}

/// The words for the program `name`, if it is called: by rnet's own name in the file system, or as its first word.
fn words_for<'a>(name: &str, args: &'a [OsString]) -> Option<&'a [OsString]> {
    match args {
        [program, words @ ..] if Path::new(program).file_name() == Some(OsStr::new(name)) => Some(words),
        [_, first, words @ ..] if first == name => Some(words),
        _ => None,
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
    Usage(Text::Rnet(error))
}

/// A mistake that shows only when options are seen together.
fn mistake(subcommand: &str, cause: &str) -> Usage {
    let mut rnet = RnetArgs::command();
    rnet.build();
    let kind = ErrorKind::ValueValidation;
    Usage(Text::Rnet(match rnet.find_subcommand_mut(subcommand) {
        Some(command) => command.error(kind, cause),
        None => rnet.error(kind, cause),
    }))
}

#[cfg(test)]
mod tests;
