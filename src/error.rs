//! The one error of set-up: what was tried, on what, why it failed and what would help.
//!
//! The datapath has no errors; what goes wrong there is a frame, a host operation or a counter.

use std::borrow::Cow;
use std::fmt;
use std::io;

/// `Result` with rnet's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Exit statuses of `rnet run` that are not the command's own (docker's convention), and of the programs whose names
/// rnet carries.
pub mod exit {
    /// In place of another program: anything that went wrong.
    pub const IMITATED_FAILED: u8 = 1;
    /// rnet itself failed.
    pub const RNET_FAILED: u8 = 125;
    /// The command exists but cannot be executed.
    pub const NOT_EXECUTABLE: u8 = 126;
    /// The command was not found.
    pub const NOT_FOUND: u8 = 127;
}

/// A failed set-up step.
///
/// Displays as `operation target: cause` with the remedy, where one is known, on a second line.
#[derive(Debug)]
pub struct Error {
    operation: Cow<'static, str>,
    target: String,
    cause: String,
    hint: Option<String>,
    exit_code: u8,
}

impl Error {
    /// An error of `operation` (a verb phrase such as "cannot open") on `target`, because of `cause`.
    pub fn new(operation: &'static str, target: impl fmt::Display, cause: impl fmt::Display) -> Self {
        Self {
            operation: Cow::Borrowed(operation),
            target: target.to_string(),
            cause: cause.to_string(),
            hint: None,
            exit_code: exit::RNET_FAILED,
        }
    }

    /// An error in the words of a program whose place rnet takes: its whole line.
    pub fn told(line: String) -> Self {
        Self {
            operation: Cow::Owned(line),
            target: String::new(),
            cause: String::new(),
            hint: None,
            exit_code: exit::RNET_FAILED,
        }
    }

    /// Why it failed.
    pub(crate) fn cause(&self) -> &str {
        &self.cause
    }

    /// Adds the exact remedy: a command, a sysctl or an option.
    #[must_use]
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    /// Ends the program with `code` instead of [`exit::RNET_FAILED`].
    #[must_use]
    pub fn exit_code(mut self, code: u8) -> Self {
        self.exit_code = code;
        self
    }

    /// One line of text that [`Self::decode`] understands: how an error crosses from a forked child.
    pub(crate) fn encode(&self) -> String {
        let hint = self.hint.as_deref().unwrap_or_default();
        let code = self.exit_code.to_string();
        [&code, self.operation.as_ref(), &self.target, &self.cause, hint].join("\0")
    }

    /// The error that [`Self::encode`] wrote; `None` for any other text.
    pub(crate) fn decode(text: &str) -> Option<Self> {
        let fields: Vec<&str> = text.split('\0').collect();
        let [code, operation, target, cause, hint] = fields[..] else {
            return None;
        };
        Some(Self {
            operation: Cow::Owned(operation.to_owned()),
            target: target.to_owned(),
            cause: cause.to_owned(),
            hint: (!hint.is_empty()).then(|| hint.to_owned()),
            exit_code: code.parse().ok()?,
        })
    }

    /// The status to exit with.
    pub fn code(&self) -> u8 {
        self.exit_code
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.operation)?;
        if !self.target.is_empty() || !self.cause.is_empty() {
            write!(f, " {}: {}", self.target, self.cause)?;
        }
        match &self.hint {
            Some(hint) => write!(f, "\n  hint: {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// Names what failed and where, for errors of the system.
pub trait Context<T> {
    /// Turns the error into an [`Error`] of `operation` on `target`.
    fn context(self, operation: &'static str, target: impl fmt::Display) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, operation: &'static str, target: impl fmt::Display) -> Result<T> {
        self.map_err(|cause| Error::new(operation, target, cause))
    }
}

impl<T> Context<T> for nix::Result<T> {
    fn context(self, operation: &'static str, target: impl fmt::Display) -> Result<T> {
        self.map_err(|errno| Error::new(operation, target, io::Error::from(errno)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crosses_a_process_boundary_unchanged() {
        let error = Error::new("cannot run", "sh", "not found").exit_code(exit::NOT_FOUND);
        for error in [error.hint("try /bin/sh"), Error::new("a", "b", "c")] {
            let copy = Error::decode(&error.encode()).expect("decodes what encode wrote");
            assert_eq!(copy.to_string(), error.to_string());
            assert_eq!(copy.code(), error.code());
        }
        assert!(Error::decode("not one of ours").is_none());
    }
}
