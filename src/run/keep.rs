//! The keeper of a container: its record, its life in the background, its end.
//!
//! The process that carries a container's traffic and passes its signals on is also the one that keeps it; there is no
//! other. In the background it is the same, but for the standard streams, which lead into a log.

use std::io::{self, Write};
use std::process;

use nix::sys::prctl::set_name;

use super::again::Restarting;
use super::background::Streams;
use super::{Event, Preparation, Session};
use crate::config::{Config, Restart};
use crate::container::{self, Foreground, Pause};
use crate::control::Place;
use crate::error::{Context, Error, Result};
use crate::state::{Kept, NetworkSettings, Record};
use crate::{attach, image, state, sys};

/// Runs the command of `config` in a container that is on record; its exit status by docker's convention. In the
/// background, it prints the container's id as soon as the command runs. No thread may have been started before. `seed`
/// feeds the gateway's random choices.
pub fn run(config: &Config, seed: u64) -> Result<u8> {
    if config.life.resumed.is_some() {
        // It goes by the name of the link that it was started through.
        let _ = set_name(c"rnet");
        return keep(config, seed, None);
    }
    state::sweep();
    container::sweep_layers();
    container::sweep_cgroups();
    if !config.life.detach {
        return keep(config, seed, None);
    }
    // Whoever waits for the end of a pipe would wait for that of the container.
    sys::process::close_all_but(&[]);
    container::detach(|foreground| keep(config, seed, Some(foreground)))?;
    writeln!(io::stdout(), "{}", config.life.id).context("cannot write to", "standard output")?;
    Ok(0)
}

/// Lives through the container's life, and puts its end on record.
fn keep(config: &Config, seed: u64, foreground: Option<Foreground>) -> Result<u8> {
    let (place, mut kept) = begin(config)?;
    let status = live(config, seed, place, foreground, kept.as_mut());
    match (kept, &status) {
        (None, _) => {}
        // One that never was leaves nothing.
        (Some(kept), Err(_)) if !kept.lives() => drop(kept),
        (Some(kept), Err(error)) => kept.end(error.code(), &error.to_string())?,
        (Some(kept), Ok(status)) => kept.end(*status, "")?,
    }
    status
}

/// The container's place and record; a new one of which nobody needs to know can do without.
fn begin(config: &Config) -> Result<(Option<Place>, Option<Kept>)> {
    if let Some(resumed) = config.life.resumed {
        let name = config.name.clone().unwrap_or_else(|| process::id().to_string());
        let place = Place::again(&name)?;
        let kept = Kept::resume(config, resumed.lock, &place)?;
        return Ok((Some(place), Some(kept)));
    }
    let place = Place::of(config.name.as_deref(), process::id(), None)?;
    let kept = place.as_ref().map(|place| Kept::begin(config, place)).transpose()?;
    if kept.is_none() && config.life.restart != Restart::No {
        return Err(Error::new(
            "cannot start",
            "the command again and again",
            "the container cannot be on record",
        )
        .hint("set XDG_RUNTIME_DIR to a directory of yours alone"));
    }
    Ok((place, kept))
}

/// From the set-up to the end, after which it may begin anew in a process of the same number.
fn live(
    config: &Config,
    seed: u64,
    place: Option<Place>,
    foreground: Option<Foreground>,
    mut kept: Option<&mut Kept>,
) -> Result<u8> {
    let restarting = Restarting::prepare(config)?;
    // Its leases are held until the container has ended.
    let image = image::settled(config, container::maps_others)?;
    let config = &image.config;
    let streams = config.life.detach.then(|| Streams::take_over(config.life.keeps_stdin)).transpose()?;
    let stderr = streams.as_ref().map(Streams::stderr);
    let mut session = Preparation { place, stderr, config, seed }.session()?;
    if let Some(kept) = &mut kept {
        describe(kept, config, &session)?;
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
        None if config.life.detach => container::let_go()?,
        None => session.announce(config.log.level),
    }
    if let Some(kept) = &mut kept {
        kept.begin_to_live();
    }
    let (mut last, mut out_of_memory, mut interlude) = (true, false, None);
    let status = session.finish(&mut |event| match (event, &mut kept) {
        (Event::Paused(Pause { paused, frozen }), Some(kept)) => {
            kept.change(|record| record.paused(paused, frozen))
        }
        (Event::Paused(_), None) => Ok(()),
        (Event::Ended(running), _) => {
            out_of_memory = running.out_of_memory();
            last = running.is_told_to_end();
            interlude = Some(running.interlude()?);
            Ok(())
        }
    });
    if let Some(recorder) = recorder {
        recorder.finish();
    }
    if let Some(kept) = &mut kept {
        kept.change(|record| record.state.oom_killed = out_of_memory)?;
    }
    let status = status?;
    if let (Some(restarting), Some(kept), Some(interlude), false) = (restarting, kept, interlude, last) {
        restarting.start_again(kept, status, interlude)?;
    }
    Ok(status)
}

/// Writes down what is known by now.
fn describe(kept: &mut Kept, config: &Config, session: &Session) -> Result<()> {
    kept.made(session.running.pid())?;
    kept.change(|record| {
        record.settle(config);
        if let Some((network, mac)) = session.joined() {
            record.network_settings = NetworkSettings::of(&network, mac);
        }
        for (publish, address) in session.published() {
            record.network_settings.listens(&publish, address);
        }
    })
}
