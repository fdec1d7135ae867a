//! Transformer Diffusion Policies as data: packages, importers, samplers, cache schedules and the plan.
