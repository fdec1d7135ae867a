//! Parameters of a dispatch, laid out as the kernels' `Params`; a test compares every field with the WGSL.

use bytemuck::{Pod, Zeroable};

/// An absent place; `NONE` in `bindings.wgsl`.
pub(super) const NONE: u32 = u32::MAX;

/// Bytes from one entry of the table of parameters to the next, unless the adapter asks for more.
pub(super) const SLOT: usize = 256;

macro_rules! params {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Pod, Zeroable)]
        pub(super) struct $name {
            $(pub(super) $field: $type),*
        }

        #[cfg(test)]
        impl $name {
            /// Names and offsets, in the order of declaration.
            pub(super) fn fields() -> Vec<(&'static str, usize)> {
                vec![$((stringify!($field), std::mem::offset_of!($name, $field))),*]
            }
        }
    };
}

params!(
    /// Of `linear.wgsl`, where each field is explained.
    Linear {
        input_at: u32,
        input_stride: u32,
        rows: u32,
        depth: u32,
        columns: u32,
        matrix_at: u32,
        eights: u32,
        bias_at: u32,
        gain_at: u32,
        slope_at: u32,
        table_at: u32,
        output_at: u32,
        output_stride: u32,
        residual_at: u32,
        residual_stride: u32,
        terms_at: u32,
        terms: u32,
    }
);

params!(
    /// Of `attention.wgsl`, where each field is explained.
    Attention {
        query_at: u32,
        query_stride: u32,
        output_at: u32,
        output_stride: u32,
        depth: u32,
        keys: u32,
        ahead: u32,
        segments: u32,
        places: [[u32; 4]; SEGMENTS],
        lengths: [u32; SEGMENTS],
    }
);

params!(
    /// Of `attend.wgsl`, where each field is explained.
    Attend {
        query_at: u32,
        query_stride: u32,
        keys_at: u32,
        keys_stride: u32,
        values_at: u32,
        values_stride: u32,
        rows: u32,
        ahead: u32,
        columns: u32,
        matrix_at: u32,
        bias_at: u32,
        output_at: u32,
        output_stride: u32,
        residual_at: u32,
        residual_stride: u32,
        terms_at: u32,
        terms: u32,
    }
);

params!(
    /// Of `cross.wgsl`, where each field is explained.
    Cross {
        input_at: u32,
        input_stride: u32,
        ahead: u32,
        bias_at: u32,
        output_at: u32,
        output_stride: u32,
        residual_at: u32,
        residual_stride: u32,
        terms_at: u32,
        terms: u32,
        padding0: u32,
        padding1: u32,
        places: [[u32; 4]; CROSS_KEYS / 4],
    }
);

params!(
    /// Of `combine.wgsl`, where each field is explained.
    Combine {
        output_at: u32,
        output_stride: u32,
        rows: u32,
        columns: u32,
        terms_at: u32,
        terms: u32,
        accumulate: u32,
    }
);

params!(
    /// Of `tokens.wgsl`, where each field is explained.
    Tokens {
        trajectory_at: u32,
        trajectory_stride: u32,
        noise_at: u32,
        tokens: u32,
        start: u32,
        input_at: u32,
        input_stride: u32,
        quiet: u32,
        quiet_sum_at: u32,
        quiet_sum_stride: u32,
        quiet_terms_at: u32,
        quiet_terms: u32,
        output_at: u32,
        output_stride: u32,
        sum_at: u32,
        sum_stride: u32,
        terms_at: u32,
        terms: u32,
        embed_at: u32,
        table_at: u32,
        head_at: u32,
        offset_at: u32,
        sampler_at: u32,
        step: u32,
        impose_at: u32,
        impose_stride: u32,
        impose_rows: u32,
        impose_columns: u32,
        impose_first: u32,
        known_at: u32,
        known_stride: u32,
        start_signal: f32,
        model_at: u32,
        model_stride: u32,
    }
);

/// Keys that `cross` takes.
pub(super) const CROSS_KEYS: usize = 32;

/// Segments of keys that one attention takes.
pub(super) const SEGMENTS: usize = 4;

/// The table of parameters: equal entries are stored once.
pub(super) struct Table {
    pub(super) bytes: Vec<u8>,
    /// Bytes from one entry to the next.
    pub(super) slot: usize,
    known: std::collections::HashMap<Vec<u8>, u32>,
}

impl Table {
    /// `alignment` is what the adapter asks of dynamic offsets.
    pub(super) fn new(alignment: usize) -> Self {
        Self { bytes: Vec::new(), slot: SLOT.next_multiple_of(alignment), known: Default::default() }
    }

    /// Offset of an entry, bytes.
    pub(super) fn add(&mut self, params: &impl Pod) -> u32 {
        let entry = bytemuck::bytes_of(params);
        assert!(entry.len() <= SLOT, "parameters larger than their slot");
        if let Some(&at) = self.known.get(entry) {
            return at;
        }
        let at = self.bytes.len();
        self.bytes.extend_from_slice(entry);
        self.bytes.resize(at + self.slot, 0);
        self.known.insert(entry.to_vec(), at as u32);
        at as u32
    }
}
