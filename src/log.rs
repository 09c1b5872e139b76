//! Log lines, on standard error or in a file: for people without timestamps, for machines as one JSON object per line
//! with an RFC 3339 timestamp.
//!
//! Only rnet's own events are written; what dependencies report through the `log` crate is not.

mod file;

use std::fmt::{self, Write};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, MakeWriter, SubscriberBuilder};
use tracing_subscriber::registry::LookupSpan;

use self::file::BoundedFile;
use crate::config::{Log, LogFile, LogFormat, LogLevel};

/// Begins to write events of `log.level` and above. The first call in a process counts; later ones change
/// nothing.
pub fn init(log: Log) {
    write_to(io::stderr, log);
}

/// The same to a file, which is made if it is missing.
pub fn init_file(log: Log, file: &LogFile) -> io::Result<()> {
    let file = BoundedFile::open(file)?;
    let _ = FILE.set(file.path().to_owned());
    write_to(move || file.clone(), log);
    Ok(())
}

/// The file that is written to, if it is one.
pub fn file() -> Option<&'static Path> {
    FILE.get().map(PathBuf::as_path)
}

static FILE: OnceLock<PathBuf> = OnceLock::new();

fn write_to(writer: impl for<'w> MakeWriter<'w> + Send + Sync + 'static, log: Log) {
    let builder = SubscriberBuilder::default()
        .with_max_level(filter(log.level))
        .with_writer(writer)
        // Else a reader of standard error that goes away would end rnet.
        .log_internal_errors(false);
    // An error means that a subscriber is there already.
    let _ = match log.format {
        LogFormat::Text => tracing::subscriber::set_global_default(builder.event_format(Text).finish()),
        LogFormat::Json => tracing::subscriber::set_global_default(builder.json().finish()),
    };
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

/// `rnet: warning: message field=value`.
struct Text;

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = String::new();
        context.format_fields(Writer::new(&mut fields), event)?;
        writeln!(writer, "rnet: {}{}", prefix(*event.metadata().level()), Tame(&fields))
    }
}

fn prefix(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error: ",
        Level::WARN => "warning: ",
        Level::INFO => "",
        Level::DEBUG => "debug: ",
        Level::TRACE => "trace: ",
    }
}

/// Text that may quote a guest: control characters are escaped and further lines are indented, so that it
/// can neither steer the terminal nor pass for another line of the log.
struct Tame<'a>(&'a str);

impl fmt::Display for Tame<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, line) in self.0.lines().enumerate() {
            if number > 0 {
                f.write_str("\n  ")?;
            }
            for character in line.trim_start().chars() {
                if character.is_control() {
                    write!(f, "{}", character.escape_default())?;
                } else {
                    f.write_char(character)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn people_read_a_prefix_and_the_message() {
        let log = text(|| {
            tracing::warn!(port = 80, "guest refuses");
            tracing::info!("link is tap");
            tracing::error!("cannot open /dev/net/tun: denied\n  hint: use --link packet");
        });
        assert_eq!(
            log,
            "rnet: warning: guest refuses port=80\nrnet: link is tap\n\
             rnet: error: cannot open /dev/net/tun: denied\n  hint: use --link packet\n"
        );
    }

    #[test]
    fn a_guest_cannot_steer_the_terminal_or_forge_a_line() {
        let name = "x\u{1b}[2J\nrnet: error: forged\r\u{7}";
        let log = text(|| tracing::warn!("lookup of {name}"));
        assert!(!log.contains('\u{1b}') && !log.contains('\u{7}') && !log.contains('\r'), "{log:?}");
        assert!(log.lines().skip(1).all(|line| line.starts_with("  ")), "{log:?}");
    }

    #[test]
    fn levels_map_one_to_one() {
        assert_eq!(filter(LogLevel::Warn), LevelFilter::WARN);
        assert_eq!(filter(LogLevel::Trace), LevelFilter::TRACE);
    }

    fn text(events: impl FnOnce()) -> String {
        let written = Written::default();
        let copy = written.clone();
        let subscriber =
            SubscriberBuilder::default().event_format(Text).with_writer(move || copy.clone()).finish();
        tracing::subscriber::with_default(subscriber, events);
        let bytes = written.0.lock().expect("not poisoned").clone();
        String::from_utf8(bytes).expect("UTF-8")
    }

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("not poisoned").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}
