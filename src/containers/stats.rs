//! `rnet stats`: what containers use, once or again and again.

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{list, not_running};
use crate::container::{self, Usage};
use crate::error::{Context, Result};
use crate::state::{self, Container, Status};

/// Between two looks: over this time processors are counted.
const INTERVAL: Duration = Duration::from_secs(1);
/// To the upper left corner, and nothing below it (console_codes(4)).
const CLEAR: &str = "\x1b[H\x1b[J";
const HEADINGS: [&str; 7] =
    ["CONTAINER ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "NET I/O", "PIDS"];

/// What a container has used at a moment.
#[derive(Clone, Copy, Debug)]
struct Look {
    at: Instant,
    usage: Usage,
}

/// What a container uses between two looks.
#[derive(Clone, Debug)]
struct Line {
    id: String,
    name: String,
    /// 100 is one processor.
    cpu_percent: f64,
    usage: Usage,
}

/// Prints what `names`, or all that run, use: every second until none is left, or just once.
pub(super) fn stats(names: &[String], once: bool, as_json: bool) -> Result<u8> {
    let mut looks = look(names)?.0;
    loop {
        thread::sleep(INTERVAL);
        let (now, lines) = look_again(names, &looks)?;
        looks = now;
        print(&lines, once, as_json)?;
        if once || (!names.is_empty() && lines.is_empty()) {
            return Ok(0);
        }
    }
}

/// The containers that run, with what they have used by now, by their ids.
fn look(names: &[String]) -> Result<(HashMap<String, Look>, Vec<Container>)> {
    let runs =
        |container: &Container| matches!(container.record.state.status, Status::Running | Status::Paused);
    let containers = match names {
        [] => state::list()?.into_iter().filter(runs).collect(),
        _ => names.iter().map(|name| state::find(name)).collect::<Result<Vec<_>>>()?,
    };
    if let Some(ended) = containers.iter().find(|container| !runs(container)) {
        return Err(not_running(ended));
    }
    let look = |container: &Container| {
        // One that ends just now has nothing to show.
        let usage = container::usage(container.record.state.pid).ok()?;
        Some((container.record.id.clone(), Look { at: Instant::now(), usage }))
    };
    Ok((containers.iter().filter_map(look).collect(), containers))
}

/// The same, and lines about those that `before` has, too. What has ended since is left out.
fn look_again(
    names: &[String],
    before: &HashMap<String, Look>,
) -> Result<(HashMap<String, Look>, Vec<Line>)> {
    let (now, containers) = match look(names) {
        Err(_) if !names.is_empty() => return Ok((HashMap::new(), Vec::new())),
        looked => looked?,
    };
    let line = |container: &Container| {
        let record = &container.record;
        let (earlier, later) = (before.get(&record.id)?, now.get(&record.id)?);
        Some(Line {
            id: record.short_id().to_owned(),
            name: record.name.clone(),
            cpu_percent: cpu_percent(earlier, later),
            usage: later.usage,
        })
    };
    let lines = containers.iter().filter_map(line).collect();
    Ok((now, lines))
}

fn cpu_percent(earlier: &Look, later: &Look) -> f64 {
    let used = later.usage.cpu.saturating_sub(earlier.usage.cpu).as_secs_f64();
    let passed = later.at.saturating_duration_since(earlier.at).as_secs_f64();
    if passed > 0.0 { used / passed * 100.0 } else { 0.0 }
}

fn print(lines: &[Line], once: bool, as_json: bool) -> Result<()> {
    let mut stdout = io::stdout();
    let text = match as_json {
        true => format!("{}\n", Value::Array(lines.iter().map(Line::to_json).collect())),
        false => list::table(&HEADINGS, &lines.iter().map(Line::to_row).collect::<Vec<_>>()),
    };
    let clear = if once || as_json || !stdout.is_terminal() { "" } else { CLEAR };
    let written = stdout.write_all(format!("{clear}{text}").as_bytes()).and_then(|()| stdout.flush());
    written.context("cannot write to", "standard output")
}

impl Line {
    fn memory_percent(&self) -> f64 {
        self.usage.memory_bytes as f64 / self.usage.memory_limit_bytes.max(1) as f64 * 100.0
    }

    fn to_row(&self) -> [String; 7] {
        let Usage { memory_bytes, memory_limit_bytes, processes, network_bytes, .. } = self.usage;
        [
            self.id.clone(),
            self.name.clone(),
            format!("{:.2}%", self.cpu_percent),
            format!("{} / {}", binary(memory_bytes), binary(memory_limit_bytes)),
            format!("{:.2}%", self.memory_percent()),
            network_bytes.map_or("--".to_owned(), |(received, sent)| {
                format!("{} / {}", decimal(received), decimal(sent))
            }),
            processes.to_string(),
        ]
    }

    fn to_json(&self) -> Value {
        let Usage { cpu, memory_bytes, memory_limit_bytes, processes, network_bytes } = self.usage;
        let (received, sent) = network_bytes.unzip();
        let rounded = |percent: f64| (percent * 100.0).round() / 100.0;
        json!({
            "Id": self.id,
            "Name": self.name,
            "CpuPercent": rounded(self.cpu_percent),
            "CpuMicroseconds": u64::try_from(cpu.as_micros()).unwrap_or(u64::MAX),
            "MemoryBytes": memory_bytes,
            "MemoryLimitBytes": memory_limit_bytes,
            "MemoryPercent": rounded(self.memory_percent()),
            "NetReceivedBytes": received,
            "NetSentBytes": sent,
            "Pids": processes,
        })
    }
}

/// As docker shows memory: in powers of 1024.
fn binary(bytes: u64) -> String {
    in_units(bytes, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB"])
}

/// As docker shows traffic: in powers of 1000.
fn decimal(bytes: u64) -> String {
    in_units(bytes, 1000.0, &["B", "kB", "MB", "GB", "TB"])
}

/// With four digits at most.
fn in_units(bytes: u64, step: f64, units: &[&str]) -> String {
    let (mut number, mut unit) = (bytes as f64, 0);
    while number >= step && unit + 1 < units.len() {
        (number, unit) = (number / step, unit + 1);
    }
    let digits = match number {
        _ if unit == 0 => 0,
        ..10.0 => 3,
        ..100.0 => 2,
        _ => 1,
    };
    format!("{number:.digits$}{}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_shown_as_docker_shows_them() {
        let sizes = [0, 999, 1024, 1_572_864, 107_374_182_400];
        assert_eq!(sizes.map(binary), ["0B", "999B", "1.000KiB", "1.500MiB", "100.0GiB"]);
        assert_eq!([1000, 23_456].map(decimal), ["1.000kB", "23.46kB"]);
    }

    #[test]
    fn one_processor_is_a_hundred_percent() {
        let at = Instant::now();
        let used = |milliseconds, at| Look {
            at,
            usage: Usage { cpu: Duration::from_millis(milliseconds), ..Usage::default() },
        };
        let later = at + Duration::from_secs(2);
        let percent = cpu_percent(&used(500, at), &used(1500, later));
        assert!((percent - 50.0).abs() < 1e-9, "{percent}");
        assert!(cpu_percent(&used(500, at), &used(400, at)).abs() < 1e-9);
    }
}
