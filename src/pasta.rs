//! `rnet pasta`, put together: the host is looked at, then a command or an existing namespace gets a network like the
//! host's, and its ports.

use std::time::{Duration, Instant};

use crate::cli::{Note, Surroundings, pasta::Spec};
use crate::config::{Config, Forward, LogLevel, Pasta, PastaGuest};
use crate::control::Socket;
use crate::error::{Context, Error, Result, exit};
use crate::io::ports::Ports;
use crate::io::resolver::{RESOLV_CONF, Resolver};
use crate::run::Session;
use crate::serve::Serving;
use crate::sys::netlink;
use crate::{attach, cli, log, net};

/// How long a port may stay in use by a forerunner that is about to end.
const BIND_PATIENCE: Duration = Duration::from_millis(300);
const BIND_INTERVAL: Duration = Duration::from_millis(10);

/// Does what `spec` asks for; the exit status. `seed` feeds the gateway's random choices.
pub fn pasta(spec: Spec, surroundings: &Surroundings, seed: u64) -> Result<u8> {
    carry_out(spec, surroundings, seed).map_err(|error| match error.code() {
        exit::RNET_FAILED => error.exit_code(exit::IMITATED_FAILED),
        // Of a command that could not be started.
        _ => error,
    })
}

fn carry_out(spec: Spec, surroundings: &Surroundings, seed: u64) -> Result<u8> {
    // A host that cannot be looked at has nothing to copy; the guest's network still works.
    let mut host = netlink::host_network().unwrap_or_default();
    let mut resolver = Resolver::new(RESOLV_CONF);
    resolver.refresh(net::Instant::ZERO);
    host.nameservers.clone_from(&resolver.conf().nameservers);
    host.search = resolver.conf().search.split(' ').map(str::to_owned).collect();
    let cli::Request { config, notes } = spec.settle(&host, surroundings).map_err(Error::told)?;
    let level = match &config.guest {
        PastaGuest::Attached(attach) => attach.log,
        PastaGuest::Command(command) => command.log,
    };
    match &config.log_file {
        Some(file) => {
            log::init_file(level, file)
                .context("cannot open", format!("log file {}", file.path.display()))?;
        }
        None => log::init(level),
    }
    for Note { level, text } in notes {
        match level {
            LogLevel::Warn => tracing::warn!("{text}"),
            _ => tracing::info!("{text}"),
        }
    }
    let Pasta { guest, inbound, control, .. } = &*config;
    let listen = || control.as_deref().map(Socket::at).transpose();
    match guest {
        PastaGuest::Attached(attach) => attach::attach(attach, seed, || {
            let socket = listen()?;
            Ok(|serving: &mut Serving| {
                publish(inbound, serving.ports())?;
                socket.map_or(Ok(()), |socket| serving.answer_at_path(socket))
            })
        }),
        PastaGuest::Command(command) => run(command, inbound, listen()?, seed),
    }
}

fn run(command: &Config, inbound: &[Forward], socket: Option<Socket>, seed: u64) -> Result<u8> {
    let mut session = Session::prepare(command, seed)?;
    publish(inbound, session.ports())?;
    socket.map_or(Ok(()), |socket| session.answer_at_path(socket))?;
    session.start()?;
    session.wait()
}

/// Binds all ports. Of those that need not be had, one at least must be.
fn publish(forwards: &[Forward], ports: &Ports) -> Result<()> {
    let mut refused = None;
    let mut had = false;
    for forward in forwards {
        match (bind(forward, ports), &forward.option) {
            (Ok(()), _) => had = true,
            (Err(error), Some(option)) => return Err(explained(&error, forward, option)),
            (Err(error), None) => refused = Some(error),
        }
    }
    refused.filter(|_| !had).map_or(Ok(()), Err)
}

/// A container that starts again may meet its forerunner's network, which ends by itself.
fn bind(forward: &Forward, ports: &Ports) -> Result<()> {
    let began = Instant::now();
    loop {
        match ports.add(&[forward.publish]) {
            Ok(_) => return Ok(()),
            Err(error) => {
                let may_end = forward.option.is_some() && error.cause().starts_with("Address already in use");
                if !may_end || began.elapsed() > BIND_PATIENCE {
                    return Err(error);
                }
                std::thread::sleep(BIND_INTERVAL);
            }
        }
    }
}

/// The failure in pasta's words, which callers look for; what rnet knows beyond them is the hint.
fn explained(error: &Error, forward: &Forward, option: &str) -> Error {
    let port = forward.publish.host_port.unwrap_or_default();
    let (cause, more) = match error.cause().split_once(" (os error ") {
        Some((cause, more)) => (cause, more.split_once("), ").map_or("", |(_, more)| more)),
        None => (error.cause(), ""),
    };
    let told = Error::told(format!("Failed to bind port {port} ({cause}) for option '{option}', exiting"));
    match more {
        "" => told,
        more => told.hint(more),
    }
}
