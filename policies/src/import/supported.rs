//! What can be imported and what is refused, as one table: the page `policies/SUPPORTED.md` and `refrain import --supported`
//! are made from it, and it is made from the lists that the importers themselves go by.

use std::fmt::Write as _;

use super::{diffusion_policy, lerobot};

/// One kind of source.
struct Source {
    title: &'static str,
    /// What the command is given.
    given: &'static str,
    /// Part and what becomes of it.
    read: Vec<(&'static str, String)>,
    /// What and why.
    refused: Vec<(&'static str, &'static str)>,
}

fn listed<T>(names: &[(&str, T)]) -> String {
    let short = |name: &str| format!("`{}`", name.rsplit('.').next().unwrap_or(name));
    let mut names: Vec<String> = names.iter().map(|(name, _)| short(name)).collect();
    names.dedup();
    names.sort();
    names.dedup();
    names.join(", ")
}

fn sources() -> Vec<Source> {
    let owned = |text: &str| text.to_owned();
    vec![
        Source {
            title: "real-stanford/diffusion_policy",
            given: "a `.ckpt` file",
            read: vec![
                ("policy", listed(&diffusion_policy::POLICIES)),
                (
                    "denoiser",
                    listed(&[(diffusion_policy::MODEL, ())])
                        + ", every shape of it; EMA weights where training used them",
                ),
                (
                    "noise scheduler",
                    listed(&diffusion_policy::SCHEDULERS) + " with the arguments of its step",
                ),
                (
                    "normalisers",
                    owned(
                        "linear, per key, as they were fitted: what never varied is only shifted; one scale and offset per image",
                    ),
                ),
                (
                    "cameras",
                    owned(
                        "`rgb` keys of `shape_meta` with `crop_shape`; their encoders by `policies/train/export_encoder.py` and `--encoder`",
                    ),
                ),
                ("configuration", owned("interpolations and `${eval:...}`; no pickle is executed")),
            ],
            refused: vec![
                ("U-Net, IBC, BET and other policies", "the denoiser is no transformer of this family"),
                ("hybrid policies with `obs_as_cond: false`", "features are not inpainted"),
                (
                    "hybrid policies without a `low_dim` key",
                    "a package has at least one low-dimensional number",
                ),
                ("`depth` and other types of observation", "no such encoder"),
                ("learned variances, dynamic thresholding, multistep solvers", "not among the samplers"),
                ("`n_latency_steps` other than 0, `past_action_visible`", "not implemented"),
                ("any key or tensor that is not known", "it might change what the policy computes"),
            ],
        },
        Source {
            title: "LeRobot",
            given: "a folder with `config.json` and `model.safetensors`",
            read: lerobot::READ.iter().map(|(part, what)| (*part, owned(what))).collect(),
            refused: lerobot::REFUSED.to_vec(),
        },
        Source {
            title: "Plain weights",
            given: "a `.safetensors` file with `policy.toml` beside it",
            read: vec![
                ("weights", owned("names of the state dict, with or without `model.`; F16, BF16, F32, F64")),
                ("everything else", owned("from `policy.toml`, as `policies/train/export.py` writes it")),
            ],
            refused: vec![(
                "any tensor that is missing, unknown or of another shape",
                "the file is for another policy",
            )],
        },
    ]
}

/// The page.
pub fn page() -> String {
    let mut text = String::from(
        "# What can be imported\n\nMade by `refrain import --supported`; a test compares it with the code. What is not supported is refused by name, \
         all of it at once.\n",
    );
    for source in sources() {
        let _ =
            write!(text, "\n## {}\n\nGiven: {}.\n\n| read | |\n| --- | --- |\n", source.title, source.given);
        for (part, what) in &source.read {
            let _ = writeln!(text, "| {part} | {what} |");
        }
        text.push_str("\n| refused | why |\n| --- | --- |\n");
        for (what, why) in &source.refused {
            let _ = writeln!(text, "| {what} | {why} |");
        }
    }
    text
}
