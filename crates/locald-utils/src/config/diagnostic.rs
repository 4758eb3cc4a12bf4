//! Mistakes in a project file: what each one carries, and how a list of them is shown.
//!
//! A [`Mistake`] is noted where it is found, with byte offsets. [`ConfigErrors`] is the finished list with the text it
//! is about; it writes itself for people ([`ConfigErrors::render`]) and for programs ([`ConfigErrors::diagnostics`]).
//! What counts as a mistake is decided elsewhere.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use annotate_snippets::{AnnotationKind, Level, Origin, Renderer, Snippet};
use serde::{Deserialize, Serialize};

/// 200: more than anybody fixes in one go, few enough that a file that is no project file at all is quickly refused.
const MAX_KEPT: usize = 200;

/// 400 characters: a message repeats what was written, which may be anything.
const MAX_MESSAGE: usize = 400;

/// One mistake, as offsets into the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mistake {
    /// Where it is, in bytes.
    pub(super) span: Range<usize>,
    message: String,
    label: String,
    others: Vec<(Range<usize>, String)>,
    help: Option<String>,
    /// True if something that is missing makes the mistake: in a file with syntax errors it may well be there.
    pub(super) is_absence: bool,
}

impl Mistake {
    /// Notes a mistake at a place.
    pub(super) fn at(span: Range<usize>, message: impl Into<String>) -> Self {
        Self {
            span,
            message: shortened(message.into()),
            label: String::new(),
            others: Vec::new(),
            help: None,
            is_absence: false,
        }
    }

    /// Writes a few words beside the caret.
    pub(super) fn label(self, label: impl Into<String>) -> Self {
        Self { label: shortened(label.into()), ..self }
    }

    /// Shows a second place.
    pub(super) fn also(mut self, span: Range<usize>, label: impl Into<String>) -> Self {
        self.others.push((span, shortened(label.into())));
        self
    }

    /// Names a way out.
    pub(super) fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(shortened(help.into())), ..self }
    }

    /// Marks a mistake that consists in something not being there.
    pub(super) fn absence(self) -> Self {
        Self { is_absence: true, ..self }
    }
}

/// Every mistake of a project file.
#[derive(Clone, Debug)]
pub struct ConfigErrors {
    /// The file, as it was asked for.
    pub file: PathBuf,
    /// Its text, or nothing if it could not be read.
    source: Option<String>,
    mistakes: Vec<Mistake>,
    /// How many more there are.
    omitted: usize,
}

/// One mistake, for programs: an entry of `check --json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostic {
    /// The file, as it was asked for.
    pub file: PathBuf,
    /// Where in the file; absent if the file could not be read.
    #[serde(flatten)]
    pub place: Option<Place>,
    /// What is wrong: one line, no full stop.
    pub message: String,
    /// A way out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

/// A place in a text, as editors count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// The line, from 1.
    pub line: usize,
    /// The column, from 1, in characters. A byte order mark is not counted.
    pub column: usize,
}

impl ConfigErrors {
    /// Takes a list of mistakes in the order in which they are to be shown.
    pub(super) fn new(file: &Path, source: String, mut mistakes: Vec<Mistake>) -> Self {
        let omitted = mistakes.len().saturating_sub(MAX_KEPT);
        mistakes.truncate(MAX_KEPT);
        for mistake in &mut mistakes {
            mistake.span = visible(&source, &mistake.span);
            for (span, _) in &mut mistake.others {
                *span = visible(&source, span);
            }
        }
        Self { file: file.to_owned(), source: Some(source), mistakes, omitted }
    }

    /// Says that the file could not be read.
    pub(super) fn unreadable(file: &Path, reason: &str) -> Self {
        let mistake = Mistake::at(0..0, format!("could not read {}: {reason}", file.display()))
            .help("`-f FILE` names another project file");
        Self { file: file.to_owned(), source: None, mistakes: vec![mistake], omitted: 0 }
    }

    /// Says that the text is not UTF-8 from offset `valid` on; `lossy` is the text as far as it can be shown.
    pub(super) fn not_utf8(file: &Path, lossy: String, valid: usize) -> Self {
        let end = valid + lossy[valid..].chars().next().map_or(0, char::len_utf8);
        let mistake = Mistake::at(valid..end, "the file is not valid UTF-8")
            .label("this byte does not belong to any character")
            .help("save the file as UTF-8");
        Self::new(file, lossy, vec![mistake])
    }

    /// The mistakes, for programs; at most two hundred.
    #[must_use]
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        self.mistakes
            .iter()
            .map(|mistake| Diagnostic {
                file: self.file.clone(),
                place: self.source.as_deref().map(|source| place(source, mistake.span.start)),
                message: mistake.message.clone(),
                help: mistake.help.clone(),
            })
            .collect()
    }

    /// Writes every mistake with file:line:column, an excerpt, a caret and a suggestion.
    ///
    /// The text ends with a newline. After two hundred mistakes only their number is given.
    #[must_use]
    pub fn render(&self, color: bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let shown: Vec<String> = self.mistakes.iter().map(|mistake| self.render_one(mistake, &renderer)).collect();
        let mut text = shown.join("\n\n");
        text.push('\n');
        if self.omitted > 0 {
            text.push_str(&format!("\nand {} more\n", self.omitted));
        }
        text
    }

    fn render_one(&self, mistake: &Mistake, renderer: &Renderer) -> String {
        let path = self.file.to_string_lossy();
        let title = Level::ERROR.primary_title(&mistake.message);
        let group = match &self.source {
            None => title.element(Origin::path(path)),
            Some(source) => {
                let mut snippet = Snippet::source(source)
                    .path(path)
                    .annotation(AnnotationKind::Primary.span(mistake.span.clone()).label(optional(&mistake.label)));
                for (span, label) in &mistake.others {
                    snippet = snippet.annotation(AnnotationKind::Context.span(span.clone()).label(optional(label)));
                }
                title.element(snippet)
            }
        };
        let group = match &mistake.help {
            Some(help) => group.element(Level::HELP.message(help)),
            None => group,
        };
        renderer.render(&[group])
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mistakes.len() + self.omitted {
            1 => write!(f, "{} has a mistake", self.file.display()),
            count => write!(f, "{} has {count} mistakes", self.file.display()),
        }
    }
}

impl std::error::Error for ConfigErrors {}

fn shortened(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(MAX_MESSAGE) {
        text.truncate(end);
        text.push('…');
    }
    text
}

fn optional(label: &str) -> Option<&str> {
    Some(label).filter(|label| !label.is_empty())
}

/// Cuts a span to what can be underlined: whole characters of one line that has text, up to the end of the last one.
fn visible(source: &str, span: &Range<usize>) -> Range<usize> {
    let end_of_text = source.trim_end().len();
    let start = source.floor_char_boundary(span.start.min(end_of_text));
    let line_length = source[start..].find(['\r', '\n']).unwrap_or(source.len() - start);
    let end = source.floor_char_boundary(span.end.clamp(start, start + line_length));
    start..end
}

/// Counts lines and characters up to a byte offset on a character boundary.
fn place(source: &str, offset: usize) -> Place {
    let before = &source[..offset];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    Place { line: before.matches('\n').count() + 1, column: before[line_start..].chars().count() + 1 }
}
