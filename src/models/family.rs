//! The families of models: what tells them apart besides numbers. Modules have the names that transformers 5 gives them, which are those of
//! adapters; checkpoints as published may have others.

/// One way to lay out a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// SmolVLM is of it as well.
    Idefics3,
    Qwen2Vl,
    /// Text alone.
    Llama,
}

/// Module prefixes and those of the published checkpoint in their place.
pub type Renames = &'static [(&'static str, &'static str)];

impl Family {
    /// Values of model_type in config.json.
    pub const TYPES: [(&'static str, Family); 4] = [
        ("idefics3", Family::Idefics3),
        ("smolvlm", Family::Idefics3),
        ("qwen2_vl", Family::Qwen2Vl),
        ("llama", Family::Llama),
    ];

    /// The text tower's module.
    pub fn text(self) -> &'static str {
        match self {
            Family::Idefics3 => "model.text_model",
            Family::Qwen2Vl => "model.language_model",
            Family::Llama => "model",
        }
    }

    /// What checkpoints call otherwise. transformers 4.52 and later may write the modules' own names.
    pub fn renames(self) -> Renames {
        match self {
            Family::Qwen2Vl => &[("model.visual.", "visual."), ("model.language_model.", "model.")],
            Family::Idefics3 | Family::Llama => &[],
        }
    }
}

/// A module's or weight's name in a checkpoint that has these renames.
pub fn renamed(name: &str, renames: Renames) -> String {
    let prefixed = renames.iter().find_map(|(from, to)| Some(format!("{to}{}", name.strip_prefix(from)?)));
    prefixed.unwrap_or_else(|| name.to_string())
}
