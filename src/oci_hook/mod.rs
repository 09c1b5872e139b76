//! `rnet oci-hook`: a network for the containers of any OCI runtime (runtime specification 1.2, "POSIX-platform
//! Hooks").
//!
//! *createRuntime* starts the network in the background and returns when it stands. Where the runtime hides the
//! container's process (crun and youki without root), it only prepares the network, and *createContainer*, which runs
//! inside, hands the namespace over ([`crate::attach::await_guest`]). The network ends with the container's first
//! process; *poststop* makes sure of it. An error of any of them ends the container.

mod state;

use std::fs::File;
use std::io::{self, ErrorKind, Read};

use self::state::{Bundle, State};
use crate::attach;
use crate::cli::{self, Note, Options, Surroundings};
use crate::config::{Attach, HookCall, HookStage, Lifecycle, Log, LogFormat, LogLevel, Target};
use crate::container;
use crate::control;
use crate::error::{Context, Error, Result};
use crate::log;
use crate::sys::netlink::Route;

/// Longest state, and longest `config.json`, in bytes.
const MAX_TEXT_BYTES: u64 = 16 * 1024 * 1024;

/// Does what a runtime asks for at `call`'s stage, or without one at the stage that its state shows; the exit status,
/// which is 0. `seed` feeds the gateway's random choices.
pub fn hook(call: &HookCall, surroundings: &Surroundings, seed: u64) -> Result<u8> {
    const STATE: &str = "the container's state on standard input";
    log::init(LOG);
    let text = read(io::stdin()).context("cannot read", STATE)?;
    let state = State::parse(&text).map_err(|cause| Error::new("cannot understand", STATE, cause))?;
    let name = state
        .network_name()
        .map_err(|cause| Error::new("cannot name a network after container", &state.id, cause))?;
    match call.stage.unwrap_or_else(|| state.stage()) {
        HookStage::CreateRuntime => create_runtime(&state, name, &call.prefix, surroundings, seed)?,
        HookStage::CreateContainer => create_container(&state, &name, &call.prefix, surroundings)?,
        HookStage::Poststop => drop(control::end(&name, &state.memo())?),
    }
    Ok(0)
}

const LOG: Log = Log { level: LogLevel::Warn, format: LogFormat::Text };

fn create_runtime(
    state: &State,
    name: String,
    prefix: &str,
    surroundings: &Surroundings,
    seed: u64,
) -> Result<()> {
    let bundle = bundle(state)?;
    let options = options(state, &bundle, prefix, surroundings)?;
    for Note { level, text } in &options.notes {
        if *level == LogLevel::Warn {
            tracing::warn!("{text}");
        }
    }
    let process = state.pid.ok_or_else(|| {
        Error::new("cannot serve container", &state.id, "its state has no pid")
            .hint("createRuntime and prestart have one, poststop has none")
    })?;
    let config = Attach {
        network: options.network,
        target: Target::Process { pid: process, userns: None },
        link: options.link,
        lifecycle: Lifecycle { detach: true, ..Lifecycle::default() },
        name: Some(name),
        memo: Some(state.memo()),
        log: LOG,
    };
    if !is_hidden(process) {
        return attach::attach(&config, seed, || Ok(|_: &mut _| Ok(()))).map(drop);
    }
    if !bundle.has_hook_inside() {
        return Err(Error::new(
            "cannot enter container",
            &state.id,
            "its runtime hides the process's namespaces",
        )
        .hint("call rnet oci-hook at the stage createContainer too"));
    }
    attach::await_guest(&config, seed, process)
}

fn create_container(state: &State, name: &str, prefix: &str, surroundings: &Surroundings) -> Result<()> {
    if container::hand_over(&control::door(name)?)? {
        return Ok(());
    }
    // createRuntime could enter, and all is there; or it was never called.
    let link = options(state, &bundle(state)?, prefix, surroundings)?.link;
    match Route::index(&link.ifname) {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::new("cannot find", format!("the network {name}"), "nobody has prepared it")
            .hint("call rnet oci-hook at the stage createRuntime too, with the same environment")),
    }
}

/// Whether the process's namespaces are closed to its own user (prctl(2), PR_SET_DUMPABLE).
fn is_hidden(process: i32) -> bool {
    let net = File::open(format!("/proc/{process}/ns/net"));
    net.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
}

fn options(state: &State, bundle: &Bundle, prefix: &str, surroundings: &Surroundings) -> Result<Options> {
    cli::named(prefix, &state.options(bundle, prefix), surroundings)
        .map_err(|cause| Error::new("cannot use the annotations of container", &state.id, cause))
}

fn bundle(state: &State) -> Result<Bundle> {
    let path = state.bundle.join("config.json");
    let text = File::open(&path).and_then(read).context("cannot read", path.display())?;
    Bundle::parse(&text).map_err(|cause| Error::new("cannot understand", path.display(), cause))
}

fn read(source: impl Read) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    source.take(MAX_TEXT_BYTES).read_to_end(&mut text)?;
    Ok(text)
}
