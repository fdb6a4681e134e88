//! A case: rulesets and packets, as they are generated and as they are kept to be run again.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::net::Place;

/// What loads a ruleset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loader {
    /// `nft -f -`, one command a line.
    Nft,
    /// `iptables-nft-restore`.
    IptablesNft,
    /// `ip6tables-nft-restore`.
    Ip6tablesNft,
    /// `iptables-legacy-restore`.
    IptablesLegacy,
    /// `ip6tables-legacy-restore`.
    Ip6tablesLegacy,
}

impl Loader {
    const ALL: [Self; 5] = [
        Self::Nft,
        Self::IptablesNft,
        Self::Ip6tablesNft,
        Self::IptablesLegacy,
        Self::Ip6tablesLegacy,
    ];

    /// Its command line.
    pub fn argv(self) -> &'static [&'static str] {
        match self {
            Self::Nft => &["nft", "-f", "-"],
            Self::IptablesNft => &["iptables-nft-restore"],
            Self::Ip6tablesNft => &["ip6tables-nft-restore"],
            Self::IptablesLegacy => &["iptables-legacy-restore"],
            Self::Ip6tablesLegacy => &["ip6tables-legacy-restore"],
        }
    }
}

/// A ruleset and what loads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What loads it.
    pub loader: Loader,
    /// Its input.
    pub text: String,
}

impl Step {
    /// Whether it loads legacy tables.
    pub fn is_legacy(&self) -> bool {
        matches!(
            self.loader,
            Loader::IptablesLegacy | Loader::Ip6tablesLegacy
        )
    }
}

/// A packet as it is handed to a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Who sends it: A and B an Ethernet frame, R an IP packet.
    pub from: Place,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// `SO_MARK`, of R's.
    pub mark: u32,
    /// Its acknowledgement number is R's sequence number plus one.
    pub acknowledges: bool,
}

/// A case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// Where it comes from.
    pub name: String,
    /// Whether conntrack is on, whatever the rulesets say.
    pub conntrack: bool,
    /// Whether a rule depends on state, so that answers may be ambiguous.
    pub stateful: bool,
    /// With legacy tables: `fwtrace --trace` has the TRACE lines, and counters are the truth.
    pub traced: bool,
    /// Packets that open connections, before the rulesets are loaded.
    pub opening: Vec<Sent>,
    /// The rulesets, in the order of loading.
    pub steps: Vec<Step>,
    /// The packets.
    pub packets: Vec<Sent>,
}

impl Case {
    /// Whether legacy tables are in it.
    pub fn has_legacy(&self) -> bool {
        self.steps.iter().any(Step::is_legacy)
    }

    /// As JSON.
    pub fn to_json(&self) -> Value {
        let packets = |packets: &[Sent]| -> Value {
            let packets = packets.iter().map(|p| {
                json!({
                    "from": format!("{:?}", p.from),
                    "hex": hex(&p.bytes),
                    "mark": p.mark,
                    "acknowledges": p.acknowledges,
                })
            });
            packets.collect()
        };
        let steps = self.steps.iter().map(|step| {
            json!({ "loader": step.loader.argv()[0], "text": step.text.lines().collect::<Vec<_>>() })
        });
        json!({
            "name": self.name,
            "conntrack": self.conntrack,
            "stateful": self.stateful,
            "traced": self.traced,
            "opening": packets(&self.opening),
            "rulesets": steps.collect::<Value>(),
            "packets": packets(&self.packets),
        })
    }

    /// Reads a case that was kept.
    ///
    /// # Errors
    /// The file is not one.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Self::from_json(&serde_json::from_str(&text)?).with_context(|| path.display().to_string())
    }

    /// From JSON.
    ///
    /// # Errors
    /// It is not a case.
    pub fn from_json(json: &Value) -> Result<Self> {
        let packets = |key: &str| -> Result<Vec<Sent>> {
            json[key]
                .as_array()
                .with_context(|| format!("no {key}"))?
                .iter()
                .map(sent)
                .collect()
        };
        let steps = json["rulesets"]
            .as_array()
            .context("no rulesets")?
            .iter()
            .map(|step| {
                let name = step["loader"].as_str();
                let loader = Loader::ALL.into_iter().find(|l| Some(l.argv()[0]) == name);
                let lines = step["text"].as_array().context("no text")?;
                let lines = lines
                    .iter()
                    .map(|l| l.as_str().unwrap_or_default().to_owned() + "\n");
                Ok(Step {
                    loader: loader.context("no such loader")?,
                    text: lines.collect(),
                })
            });
        Ok(Self {
            name: json["name"].as_str().unwrap_or_default().to_owned(),
            conntrack: json["conntrack"] == true,
            stateful: json["stateful"] == true,
            traced: json["traced"] == true,
            opening: packets("opening")?,
            steps: steps.collect::<Result<_>>()?,
            packets: packets("packets")?,
        })
    }
}

fn sent(json: &Value) -> Result<Sent> {
    let from = match json["from"].as_str() {
        Some("A") => Place::A,
        Some("B") => Place::B,
        Some("R") => Place::R,
        other => anyhow::bail!("no place: {other:?}"),
    };
    Ok(Sent {
        from,
        bytes: unhex(json["hex"].as_str().context("no hex")?)?,
        mark: u32::try_from(json["mark"].as_u64().unwrap_or(0))?,
        acknowledges: json["acknowledges"] == true,
    })
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Result<Vec<u8>> {
    ensure!(
        text.len().is_multiple_of(2) && text.is_ascii(),
        "not pairs of digits: {text}"
    );
    let pairs = (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16));
    Ok(pairs.collect::<Result<_, _>>()?)
}
