//! Published models whose `config.json` is part of the binary.

macro_rules! presets {
    ($($name:literal),+ $(,)?) => {
        /// Name and `config.json` of each preset, by size.
        pub const PRESETS: &[(&str, &str)] = &[
            $(($name, include_str!(concat!("../../models/", $name, "/config.json")))),+
        ];
    };
}

presets![
    "llama-15m",
    "gpt2",
    "qwen2.5-0.5b",
    "qwen3-0.6b",
    "llama-3.2-1b",
    "mistral-7b",
    "llama-3.1-8b",
    "qwen3-8b",
    "llama-3.1-70b",
    "llama-3.1-405b",
];
