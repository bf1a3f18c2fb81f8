//! Conversations to token ids: chat template, picture placeholders, tokenizer.
mod guard;
mod template;

use std::path::Path;

use serde::de::IgnoredAny;
use tokenizers::{Encoding, Tokenizer};

use super::config::{Config, read_json, read_text};
use super::family::Family;
use crate::error::{Error, Result};
use guard::guarded;
use template::ChatTemplate;

/// Bytes of the largest tokenizer.json that is read; published ones have up to about 35 million.
const MAX_TOKENIZER: u64 = 256 << 20;

/// Breaks a text between two characters that must not become one token: `encode` tokenizes the parts one by one.
/// A Unicode noncharacter, so that no text has it for another purpose.
const BREAK: &str = "\u{FDD0}";

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Image,
    Text(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// "user", "assistant" or "system".
    pub role: String,
    pub content: Vec<Content>,
}

impl Message {
    pub fn new(role: &str, content: Vec<Content>) -> Self {
        Message { role: role.to_string(), content }
    }
}

/// What stands for a picture among the tokens, besides what the chat template writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placeholders {
    /// So many picture tokens a tile, and tokens around that tell where it is (Idefics3).
    Tiles(usize),
    /// A picture token for each element of the grid (Qwen2-VL).
    Grid,
    /// The model takes no pictures.
    None,
}

impl Placeholders {
    pub fn of(config: &Config) -> Placeholders {
        match (&config.vision, config.family) {
            (None, _) => Placeholders::None,
            (Some(vision), Family::Idefics3) => Placeholders::Tiles(vision.tile_tokens()),
            (Some(_), _) => Placeholders::Grid,
        }
    }
}

/// tokenizer.json, the chat template, and how many tokens a picture takes.
pub struct Prompter {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    /// What stands for a picture in a rendered conversation.
    image_token: String,
    placeholders: Placeholders,
}

impl Prompter {
    pub fn read(folder: &Path, placeholders: Placeholders) -> Result<Prompter> {
        let tokenizer = read_tokenizer(&folder.join("tokenizer.json"))?;
        let image_token = image_token(folder, &tokenizer)?;
        let template = ChatTemplate::read(folder, placeholders != Placeholders::None)?;
        Ok(Prompter { tokenizer, template, image_token, placeholders })
    }

    /// Entries of the vocabulary, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// The id of one token, written as in tokenizer.json.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// The conversation as text, one `<image>` a picture; `generate` appends the start of the assistant's turn.
    /// An `<image>` that somebody wrote into a text is broken by a noncharacter: it stays text, and no picture is put there.
    pub fn render(&self, messages: &[Message], generate: bool) -> Result<String> {
        let plain: Vec<Message> = messages.iter().map(|m| self.with_broken_image_tokens(m)).collect();
        let text = self.template.render(&plain, generate)?;
        let got = if self.takes_pictures() { text.matches(&self.image_token).count() } else { 0 };
        let want = pictures(messages);
        if got == want {
            Ok(text)
        } else {
            let what = format!("the chat template wrote {got} {} for {want} pictures", self.image_token);
            Err(Error::input(self.template.path(), what))
        }
    }

    fn with_broken_image_tokens(&self, message: &Message) -> Message {
        let content = message.content.iter().map(|content| match content {
            Content::Image => Content::Image,
            Content::Text(text) => Content::Text(self.broken(text)),
        });
        Message { role: message.role.clone(), content: content.collect() }
    }

    fn takes_pictures(&self) -> bool {
        self.placeholders != Placeholders::None
    }

    fn broken(&self, text: &str) -> String {
        if !self.takes_pictures() {
            return text.to_string();
        }
        let (head, tail) = self.image_token.split_at(1);
        text.replace(&self.image_token, &format!("{head}{BREAK}{tail}"))
    }

    /// Replaces each `<image>` by the placeholder tokens of its picture: grids[i] = (rows, cols) of tiles, (0, 0) for a picture that is not split;
    /// or of tokens, where there are no tiles.
    pub fn expand(&self, text: &str, grids: &[(usize, usize)]) -> Result<String> {
        if !self.takes_pictures() && grids.is_empty() {
            return Ok(text.to_string());
        }
        let parts: Vec<&str> = text.split(&self.image_token).collect();
        if parts.len() != grids.len() + 1 {
            let expected = format!("{} {} in the prompt, one a picture", grids.len(), self.image_token);
            return Err(Error::op("expand", expected, (parts.len() - 1).to_string()));
        }
        let mut out = parts[0].to_string();
        for (&(rows, cols), part) in grids.iter().zip(&parts[1..]) {
            match self.placeholders {
                Placeholders::Tiles(tile_tokens) => self.push_tiles(&mut out, rows, cols, tile_tokens),
                Placeholders::Grid | Placeholders::None => {
                    out.push_str(&self.image_token.repeat(rows * cols))
                }
            }
            out.push_str(part);
        }
        Ok(out)
    }

    /// Placeholders of one picture, as transformers' Idefics3Processor writes them: a line of tiles a row, then the global tile.
    fn push_tiles(&self, out: &mut String, rows: usize, cols: usize, tile_tokens: usize) {
        const AROUND: &str = "<fake_token_around_image>";
        let tile = self.image_token.repeat(tile_tokens);
        for row in 1..=rows {
            for col in 1..=cols {
                out.push_str(&format!("{AROUND}<row_{row}_col_{col}>{tile}"));
            }
            out.push('\n');
        }
        if rows > 0 {
            out.push('\n');
        }
        out.push_str(&format!("{AROUND}<global-img>{tile}{AROUND}"));
    }

    /// Ids of a conversation, rendered and expanded. Special tokens are added as transformers' `apply_chat_template` does it: by a tokenizer none, by a
    /// processor those of tokenizer.json's post-processor, unless the text begins with the first of them anyway.
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<u32>> {
        let begun = self.template.token("bos_token").is_some_and(|token| text.starts_with(token));
        self.encode(text, self.takes_pictures() && !begun)
    }

    /// Ids of a text that is no conversation, such as documentation, in which an `<image>` stays text.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>> {
        self.encode(&self.broken(text), true)
    }

    /// Ids of a text; special tokens written in it are recognised; none is added unless tokenizer.json's post-processor does (`special`).
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        self.tokenize(|tokenizer| {
            let parts = text.split(BREAK).map(|part| tokenizer.encode_fast(part, false));
            let whole = Encoding::merge(parts.collect::<Result<Vec<Encoding>, _>>()?, false);
            Ok(tokenizer.post_process(whole, None, special)?.get_ids().to_vec())
        })
    }

    /// Text of ids, without special tokens unless `special`.
    pub fn decode(&self, ids: &[u32], special: bool) -> Result<String> {
        self.tokenize(|tokenizer| tokenizer.decode(ids, !special))
    }

    fn tokenize<T>(&self, work: impl FnOnce(&Tokenizer) -> tokenizers::Result<T>) -> Result<T> {
        let failed = |what: String| Error::Failure(format!("the tokenizer failed: {what}"));
        guarded(|| work(&self.tokenizer)).map_err(failed)?.map_err(|e| failed(e.to_string()))
    }
}

fn pictures(messages: &[Message]) -> usize {
    messages.iter().flat_map(|m| &m.content).filter(|c| **c == Content::Image).count()
}

fn read_tokenizer(path: &Path) -> Result<Tokenizer> {
    let wrong = |what: String| Error::input(path, format!("not a valid tokenizer: {what}"));
    let text = read_text(path, MAX_TOKENIZER)?;
    // Said here, what is wrong with the JSON has its line; the tokenizer's own reader says less of it.
    serde_json::from_str::<IgnoredAny>(&text).map_err(|e| wrong(e.to_string()))?;
    let parsed = guarded(|| text.parse::<Tokenizer>()).map_err(wrong)?;
    let mut tokenizer = parsed.map_err(|e| wrong(e.to_string()))?;
    // What a file says of cutting and padding is for other uses: a prompt is encoded whole and alone.
    tokenizer.with_truncation(None).map_err(|e| wrong(e.to_string()))?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}

/// The token whose id config.json gives as the picture's, else Idefics3Processor's.
fn image_token(folder: &Path, tokenizer: &Tokenizer) -> Result<String> {
    let path = folder.join("config.json");
    let config = if path.exists() { read_json(&path)? } else { Default::default() };
    let Some((key, value)) =
        ["image_token_id", "image_token_index"].iter().find_map(|key| config.get_key_value(*key))
    else {
        return Ok("<image>".to_string());
    };
    let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
    match id.and_then(|id| tokenizer.id_to_token(id)) {
        // Two characters or more, or a literal one could not be broken; ASCII first, so that it can be cut there.
        Some(token) if token.len() > 1 && token.is_char_boundary(1) => Ok(token),
        other => {
            let got = other.map_or_else(|| "no token".to_string(), |token| format!("{token:?}"));
            let what = format!(
                "{key}: expected the id of a token such as <image>, got {value}, in tokenizer.json {got}"
            );
            Err(Error::input(path, what))
        }
    }
}
