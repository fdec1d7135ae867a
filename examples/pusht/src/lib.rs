//! The Push-T task: geometry, physics, score and drawing.
