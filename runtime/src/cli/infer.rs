//! `refrain infer`: observations in a file to actions in a file.

use std::path::PathBuf;

use refrain_policies::camera::{Camera, Channels};
use refrain_policies::preprocess::Image;
use refrain_policies::vision::Frame;

use super::selection::{EngineArgs, FULL, SamplerArgs, Selected, load};
use super::tensors::{self, Array, TensorFile};
use super::{Outcome, say};
use crate::noise;
use crate::policy::Prediction;

#[derive(clap::Args)]
pub(super) struct Args {
    /// Policy package.
    policy: PathBuf,
    /// Safetensors file with `obs_raw` [B,To,O] and, optionally, `noise` [at least K+1,B,T,N], both F32; for each camera
    /// of the policy, images by its name, U8 [B,To,H,W,C].
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Safetensors file to write: `action` [B,Ta,A], `action_pred` [B,T,A], `trajectory_norm` [B,T,N].
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    sampler: SamplerArgs,
    /// Cache schedule of the policy, or `full`.
    #[arg(long, value_name = "NAME", default_value = FULL)]
    schedule: String,
    #[command(flatten)]
    engine: EngineArgs,
    /// Seed of the noise when the input has none.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl Args {
    pub(super) fn run(self) -> Outcome {
        let package = load(&self.policy)?;
        let selected = Selected::new(&self.policy, package, self.sampler, &self.schedule)?;
        let (c, a) = (&selected.config, &selected.config.architecture);
        let (to, o) = (a.n_obs_steps, c.observation.size());
        let (t, n, actions) = (a.tokens(), c.denoised_size(), c.action.size());
        let rows = c.sampler.inference_steps + 1;

        let mut file = TensorFile::read(&self.input)?;
        let observations = file
            .take("obs_raw", &format!("[B, {to}, {o}]"), |s| s.len() == 3 && s[1..] == [to, o] && s[0] > 0)?;
        let batch = observations.shape[0];
        let given = if file.has("noise") {
            let expected = format!("[at least {rows}, {batch}, {t}, {n}]");
            let fits = |s: &[usize]| s.len() == 4 && s[0] >= rows && s[1..] == [batch, t, n];
            Some(file.take("noise", &expected, fits)?)
        } else {
            None
        };

        let mut images = Vec::new();
        for camera in &c.cameras {
            let [height, width] = camera.size;
            let shape = [batch, to, height, width, camera.channels.count()];
            images.push(file.take_images(&camera.name, &shape)?);
        }

        let mut policy = selected.policy(&self.engine)?;
        let mut prediction = Prediction::default();
        let mut draw = vec![0.0; policy.noise_len()];
        let (mut action, mut action_pred, mut trajectory) = (Vec::new(), Vec::new(), Vec::new());
        for (b, observation) in observations.data.chunks_exact(to * o).enumerate() {
            if let Some(noise) = &given {
                for (k, row) in draw.chunks_exact_mut(t * n).enumerate() {
                    row.copy_from_slice(&noise.data[(k * batch + b) * t * n..][..t * n]);
                }
            } else {
                noise::fill(self.seed, 0, b as u64, &mut draw);
            }
            let frames: Vec<Frame<'_>> = (b * to..(b + 1) * to)
                .flat_map(|i| {
                    c.cameras.iter().zip(&images).map(move |(camera, bytes)| frame(camera, bytes, i))
                })
                .collect();
            policy.predict_seeing(observation, &frames, &draw, &mut prediction)?;
            action.extend_from_slice(&prediction.action);
            action_pred.extend_from_slice(&prediction.action_pred);
            trajectory.extend_from_slice(&prediction.trajectory_norm);
        }
        let ta = a.n_action_steps;
        tensors::write(
            &self.output,
            &[
                ("action", Array { shape: vec![batch, ta, actions], data: action }),
                ("action_pred", Array { shape: vec![batch, t, actions], data: action_pred }),
                ("trajectory_norm", Array { shape: vec![batch, t, n], data: trajectory }),
            ],
        )?;
        say!(
            "{batch} chunk{} of {ta} x {actions} actions with {}, schedule {} -> {}",
            if batch == 1 { "" } else { "s" },
            c.sampler.label(),
            selected.name,
            self.output.display()
        );
        Ok(())
    }
}

/// Image `index` of a camera's bytes [.., H, W, C], colours as RGB; its index is its stamp.
fn frame<'a>(camera: &Camera, bytes: &'a [u8], index: usize) -> Frame<'a> {
    let [height, width] = camera.size;
    let channels = if camera.channels == Channels::Mono { Channels::Mono } else { Channels::Rgb };
    let step = width * channels.count();
    let pixels = &bytes[index * height * step..][..height * step];
    Frame { stamp: index as i64, image: Image { height, width, step, channels, pixels } }
}
