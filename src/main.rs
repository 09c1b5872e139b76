//! The `rnet` command: what the environment says is collected, the command line is understood and carried
//! out.

use std::ffi::OsString;
use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::process::ExitCode;

use rnet::cli::{self, Command, Note, RANDOM_BYTES, Request, Surroundings};
use rnet::config::{Log, LogFormat, LogLevel};
use rnet::error::{Context, Error, Result};
use rnet::serve::Serving;
use rnet::sys::{memory, netlink, program};
use rnet::{
    attach, cni, container, containers, cp, exec, hello, image, layers, log, manual, network, oci_hook,
    pasta, pesto, port, run,
};

fn main() -> ExitCode {
    memory::fix_mmap_threshold();
    let args: Vec<OsString> = std::env::args_os().collect();
    let status = surroundings(cli::chooses_addresses(&args)).and_then(|surroundings| {
        match cli::parse(args.into_iter(), &surroundings) {
            Ok(command) => execute(command, &surroundings),
            Err(usage) => {
                // Without readable standard streams the status is all that is left to say.
                let _ = usage.print(&mut std::io::stdout(), &mut std::io::stderr());
                Ok(usage.code())
            }
        }
    });
    ExitCode::from(status.unwrap_or_else(|error| report(&error)))
}

/// How commands log that have no options about it.
const QUIET: Log = Log { level: LogLevel::Warn, format: LogFormat::Text };

/// Carries the command out; its exit status.
fn execute(command: Command, surroundings: &Surroundings) -> Result<u8> {
    let seed = seed(&surroundings.random);
    match command {
        Command::Run(request) => {
            // Before anything is said or opened: it starts rnet anew.
            container::enter_scope(&request.config.container.allowance)
                .and_then(|()| leave_file())
                .inspect_err(|_| log::init(request.config.log))?;
            run::run(&prepare(request.config.log, request), seed)
        }
        Command::Attach(request) => {
            attach::attach(&prepare(request.config.log, request), seed, || Ok(|_: &mut Serving| Ok(())))
        }
        Command::Slirp4netns(config) => {
            log::init(config.attach.log);
            attach::slirp4netns(*config, seed)
        }
        Command::Pasta(spec) => pasta::pasta(*spec, surroundings, seed),
        Command::Pesto(call) => pesto::pesto(&call),
        Command::Network(command) => network::network(&command, surroundings, seed),
        Command::Exec(call) => {
            log::init(QUIET);
            exec::exec(&call, leave_file)
        }
        Command::Copy(call) => {
            log::init(QUIET);
            leave_file().and_then(|()| cp::cp(&call))
        }
        Command::Ask(question) => port::ask(&question),
        Command::Image(call) => image::keep(&call),
        Command::Containers(call) => containers::carry_out(&call),
        Command::Layers(call) => layers::carry_out(&call),
        Command::OciHook(call) => oci_hook::hook(&call, surroundings, seed),
        Command::Cni => cni::cni(surroundings, seed),
        Command::Manual(wanted) => manual::manual(&wanted),
        Command::Hello(request) => hello::hello(*prepare(request.config.log, request), seed),
        Command::HelloGuest(outside) => hello::guest(outside),
    }
}

/// What runs in a container shall not come near the file of this program.
fn leave_file() -> Result<()> {
    program::leave_file(&std::env::args_os().collect::<Vec<_>>())
}

/// Starts logging, and says what was decided before it could be said.
fn prepare<C>(how: Log, request: Request<C>) -> Box<C> {
    log::init(how);
    for Note { level, text } in &request.notes {
        match level {
            LogLevel::Error => tracing::error!("{text}"),
            LogLevel::Warn => tracing::warn!("{text}"),
            LogLevel::Info => tracing::info!("{text}"),
            LogLevel::Debug => tracing::debug!("{text}"),
            LogLevel::Trace => tracing::trace!("{text}"),
        }
    }
    request.config
}

/// Tells the user why rnet ends; the status to end with.
fn report(error: &Error) -> u8 {
    // Before logging stands nothing takes events.
    if tracing::dispatcher::has_been_set() {
        tracing::error!("{error}");
    } else {
        // Nowhere is left to complain about a standard error that is closed.
        let _ = writeln!(std::io::stderr(), "rnet: error: {error}");
    }
    error.code()
}

/// What the environment says; of the host's networks and cores only for who `chooses` by them, as it takes a while to ask.
fn surroundings(chooses: bool) -> Result<Surroundings> {
    let hostname = nix::unistd::gethostname().context("cannot read", "the host's name")?;
    Ok(Surroundings {
        // What rnet tells itself is not for the command.
        env: std::env::vars_os().filter(|(name, _)| name != container::IN_SCOPE).collect(),
        cwd: std::env::current_dir()
            .context("cannot read", "the working directory")
            .map_err(|error| error.hint("it has been removed or closed to you; cd to another"))?,
        hostname: hostname.to_string_lossy().into_owned(),
        cores: if chooses { std::thread::available_parallelism().map_or(1, Into::into) } else { 1 },
        stdin_is_tty: std::io::stdin().is_terminal(),
        // What cannot be read cannot be kept clear of; the guest's network still works.
        host_subnets: if chooses { netlink::host_subnets().unwrap_or_default() } else { Vec::new() },
        random: random()?,
    })
}

fn random() -> Result<[u8; RANDOM_BYTES]> {
    let mut bytes = [0; RANDOM_BYTES];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("cannot read", "/dev/urandom")?;
    Ok(bytes)
}

/// What feeds the gateway's random choices.
fn seed(random: &[u8; RANDOM_BYTES]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *random;
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}
