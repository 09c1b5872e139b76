//! The keeper of a container: its record, its life in the background, its end.
//!
//! The process that carries a container's traffic and passes its signals on is also the one that keeps it; there is no
//! other. In the background it is the same, but for the standard streams, which lead into a log.

use std::io::{self, Write};
use std::process;

use super::background::Streams;
use super::{Preparation, Session};
use crate::config::Config;
use crate::container::{self, Foreground};
use crate::control::Place;
use crate::error::{Context, Error, Result};
use crate::state::{Kept, NetworkSettings, Record};
use crate::{attach, image, state, sys};

/// Runs the command of `config` in a container that is on record; its exit status by docker's convention. In the
/// background, it prints the container's id as soon as the command runs. No thread may have been started before. `seed`
/// feeds the gateway's random choices.
pub fn run(config: &Config, seed: u64) -> Result<u8> {
    state::sweep();
    if !config.life.detach {
        return keep(config, seed, None);
    }
    // Whoever waits for the end of a pipe would wait for that of the container.
    sys::process::close_all_but(&[]);
    container::detach(|foreground| keep(config, seed, Some(foreground)))?;
    writeln!(io::stdout(), "{}", config.life.id).context("cannot write to", "standard output")?;
    Ok(0)
}

fn keep(config: &Config, seed: u64, foreground: Option<Foreground>) -> Result<u8> {
    let place = Place::of(config.name.as_deref(), process::id(), None)?;
    // Its leases are held until the container has ended.
    let image = image::settled(config)?;
    let (config, asked) = (&image.config, &config.container.rootfs);
    // It goes after the session, on the way of an error too.
    let mut kept = place.as_ref().map(|place| Kept::begin(config, asked, place)).transpose()?;
    let streams = foreground.is_some().then(|| Streams::take_over(config.life.keeps_stdin)).transpose()?;
    let stderr = streams.as_ref().map(Streams::stderr);
    let mut session = Preparation { place, stderr, config, seed }.session()?;
    if let Some(kept) = &mut kept {
        describe(kept, &session)?;
    }
    session.start()?;
    if let Some(kept) = &mut kept {
        kept.change(Record::started)?;
    }
    config.life.pid_file.as_deref().map_or(Ok(()), attach::write_pid)?;
    let recorder = match (streams, &kept) {
        (Some(streams), Some(kept)) => Some(streams.keep(kept.log(config.life.max_log_bytes)?)?),
        _ => None,
    };
    match foreground {
        Some(foreground) => foreground.release()?,
        None => session.announce(config.log.level),
    }
    let status = session.wait();
    if let Some(recorder) = recorder {
        recorder.finish();
    }
    end(kept, &status)?;
    status
}

/// Writes down what is known by now.
fn describe(kept: &mut Kept, session: &Session) -> Result<()> {
    kept.made(session.running.pid())?;
    kept.change(|record| {
        if let Some((network, mac)) = session.joined() {
            record.network_settings = NetworkSettings::of(&network, mac);
        }
        for (publish, address) in session.published() {
            record.network_settings.listens(&publish, address);
        }
    })
}

fn end(kept: Option<Kept>, status: &Result<u8>) -> Result<()> {
    let Some(kept) = kept else { return Ok(()) };
    let error = status.as_ref().err().map(ToString::to_string).unwrap_or_default();
    kept.end(status.as_ref().map_or_else(Error::code, |status| *status), &error)
}
