//! Blocks as TOML: `"layer0.self_attention" = [0, 6]` in a table, names in a list.

use std::fmt;

use serde::de::{Error, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serializer};

use crate::schedule::Block;

/// A block as its name, written in exactly one way.
struct Name(Block);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        match name.parse::<Block>() {
            Ok(block) if block.to_string() == name => Ok(Self(block)),
            _ => Err(D::Error::custom(format!(
                "expected a quoted block name such as \"layer0.self_attention\", got {name:?}"
            ))),
        }
    }
}

struct Rows;

impl<'de> Visitor<'de> for Rows {
    type Value = Vec<(Block, Vec<usize>)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table from quoted block names to lists of update steps")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut rows = Vec::new();
        while let Some((Name(block), at)) = map.next_entry::<Name, Vec<usize>>()? {
            rows.push((block, at));
        }
        rows.sort_by_key(|(block, _)| *block);
        Ok(rows)
    }
}

pub(super) fn serialize<S: Serializer>(
    rows: &[(Block, Vec<usize>)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(rows.len()))?;
    for (block, at) in rows {
        map.serialize_entry(&block.to_string(), at)?;
    }
    map.end()
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<(Block, Vec<usize>)>, D::Error> {
    deserializer.deserialize_map(Rows)
}

pub(super) mod names {
    //! A list of block names.

    use serde::{Deserialize, Deserializer, Serializer};

    use super::Name;
    use crate::schedule::Block;

    pub(in super::super) fn serialize<S: Serializer>(
        blocks: &[Block],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(blocks.iter().map(Block::to_string))
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Block>, D::Error> {
        Ok(Vec::<Name>::deserialize(deserializer)?.into_iter().map(|Name(block)| block).collect())
    }
}
