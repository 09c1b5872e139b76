//! `rnet ps` and `rnet inspect`.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};

use super::{each, say};
use crate::config::ListShape;
use crate::control;
use crate::control::protocol::Request;
use crate::error::{Context, Result};
use crate::state::{self, Container, PortBinding, Record, Status, Timestamp};

/// How long the rnet that keeps a container may take to tell its ports; those of its start are told otherwise.
const ANSWER: Duration = Duration::from_millis(500);
/// Characters of a command that a table shows.
const COMMAND_CHARS: usize = 30;
const HEADINGS: [&str; 7] = ["CONTAINER ID", "ROOTFS", "COMMAND", "CREATED", "STATUS", "PORTS", "NAME"];

/// Prints those that live, or `all`.
pub(super) fn list(all: bool, shape: ListShape) -> Result<u8> {
    let wanted = |container: &Container| all || container.record.state.status != Status::Exited;
    let records = state::list()?.into_iter().filter(wanted).map(|container| match shape {
        ListShape::Ids => container.record,
        ListShape::Table | ListShape::Json => up_to_date(container.record),
    });
    let text = match shape {
        ListShape::Ids => records.map(|record| format!("{}\n", record.short_id())).collect(),
        ListShape::Json => format!("{:#}\n", Value::Array(records.map(|record| summary(&record)).collect())),
        ListShape::Table => table(&HEADINGS, &records.map(|record| row(&record)).collect::<Vec<_>>()),
    };
    io::stdout().write_all(text.as_bytes()).context("cannot write to", "standard output")?;
    Ok(0)
}

/// Prints all that is known of `names`.
pub(super) fn inspect(names: &[String]) -> Result<u8> {
    let mut found = Vec::new();
    let done = each(names, |name| {
        found.push(up_to_date(state::find(name)?.record));
        Ok(())
    });
    let text = serde_json::to_string_pretty(&found).map_err(io::Error::from);
    say(&text.context("cannot print", "containers")?)?;
    done
}

/// The record with the ports that are published by now.
fn up_to_date(mut record: Record) -> Record {
    if matches!(record.state.status, Status::Running | Status::Paused)
        && let Ok(answer) = control::ask_within(&record.name, &Request::Ports, ANSWER)
    {
        record.network_settings.ports = ports(&answer);
    }
    record
}

fn ports(answer: &Value) -> BTreeMap<String, Vec<PortBinding>> {
    let mut ports = BTreeMap::new();
    for port in answer["ports"].as_array().into_iter().flatten() {
        let (Some(number), Some(transport)) = (port["guest_port"].as_u64(), port["transport"].as_str())
        else {
            continue;
        };
        let addresses = port["addresses"].as_array().into_iter().flatten();
        let addresses = addresses.filter_map(|address| address.as_str()?.parse::<SocketAddr>().ok());
        let bindings: &mut Vec<_> = ports.entry(format!("{number}/{transport}")).or_default();
        bindings.extend(addresses.map(PortBinding::from));
    }
    ports
}

fn summary(record: &Record) -> Value {
    json!({
        "Id": record.id,
        "Name": record.name,
        "Rootfs": record.rnet.rootfs,
        "Command": record.config.cmd,
        "Created": record.created,
        "State": record.state.status,
        "Status": status(record),
        "Pid": record.state.pid,
        "ExitCode": record.state.exit_code,
        "Ports": record.network_settings.ports,
    })
}

fn row(record: &Record) -> [String; 7] {
    let command = record.config.cmd.join(" ").replace(char::is_control, " ");
    let command = match command.char_indices().nth(COMMAND_CHARS) {
        Some((end, _)) => format!("\"{}...\"", &command[..end]),
        None => format!("\"{command}\""),
    };
    let bindings = record.network_settings.ports.iter().flat_map(|(port, bindings)| {
        bindings.iter().map(move |PortBinding { host_ip, host_port }| match host_ip.contains(':') {
            true => format!("[{host_ip}]:{host_port}->{port}"),
            false => format!("{host_ip}:{host_port}->{port}"),
        })
    });
    [
        record.short_id().to_owned(),
        record.rnet.rootfs.clone(),
        command,
        format!("{} ago", span(record.created)),
        status(record),
        bindings.collect::<Vec<_>>().join(", "),
        record.name.clone(),
    ]
}

/// How it is, and for how long.
fn status(record: &Record) -> String {
    let state = &record.state;
    match state.status {
        Status::Created => "Created".to_owned(),
        Status::Running => format!("Up {}", span(state.started_at)),
        Status::Paused => format!("Up {} (Paused)", span(state.started_at)),
        Status::Restarting => format!("Restarting ({}) {} ago", state.exit_code, span(state.finished_at)),
        Status::Exited => format!("Exited ({}) {} ago", state.exit_code, span(state.finished_at)),
    }
}

/// The time since `moment`, in its largest unit.
fn span(moment: Timestamp) -> String {
    let seconds = moment.age().unwrap_or_default().as_secs();
    let (number, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{number} {unit}{}", if number == 1 { "" } else { "s" })
}

/// `rows` below `headings`, in columns as wide as what is in them.
pub(super) fn table<const COLUMNS: usize>(headings: &[&str; COLUMNS], rows: &[[String; COLUMNS]]) -> String {
    let headings = headings.map(str::to_owned);
    let rows = [&headings].into_iter().chain(rows);
    let width = |column: usize| rows.clone().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: [usize; COLUMNS] = std::array::from_fn(width);
    let line = |row: &[String; COLUMNS]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}   "));
        cells.collect::<String>().trim_end().to_owned() + "\n"
    };
    rows.clone().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let mut record =
            Record { name: "box".to_owned(), id: "0123456789abcdef".repeat(4), ..Record::default() };
        record.config.cmd = vec!["sh".to_owned(), "-c".to_owned(), "x".repeat(40)];
        record.started();
        record.network_settings.ports = ports(&json!({"ports": [
            {"guest_port": 80, "transport": "tcp", "addresses": ["127.0.0.1:8080", "[::1]:8080"]},
        ]}));
        record.created = Timestamp::now();
        let text = table(&HEADINGS, &[row(&record)]);
        let [head, line] = text.lines().collect::<Vec<_>>()[..] else { panic!("{text}") };
        for (heading, cell) in [
            ("CONTAINER ID", "0123456789ab "),
            ("COMMAND", "\"sh -c xxx"),
            ("STATUS", "Up 0 seconds"),
            ("PORTS", "127.0.0.1:8080->80/tcp, [::1]:8080->80/tcp   "),
            ("NAME", "box"),
        ] {
            let at = head.find(heading).expect(heading);
            assert!(line[at..].starts_with(cell), "{text}");
        }
        assert!(line.contains("xxx...\""), "{text}");
    }

    #[test]
    fn spans_are_told_in_their_largest_unit() {
        for (seconds, text) in
            [(0, "0 seconds"), (1, "1 second"), (61, "1 minute"), (7300, "2 hours"), (90_000, "1 day")]
        {
            assert_eq!(span(Timestamp::now().earlier(Duration::from_secs(seconds))), text);
        }
    }
}
