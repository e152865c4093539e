//! `deq generate`.

use crate::predict::ModelArgs;
use crate::print;
use anyhow::Result;
use clap::Args;
use deq_train::tasks::text::{GenerateOptions, Sampling, generate};
use std::io::Write;

#[derive(Args)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The text to go on from. Default: the beginning of a line.
    #[arg(long, default_value = "")]
    prompt: String,
    /// Tokens to generate.
    #[arg(long, default_value_t = 200)]
    tokens: usize,
    /// Divides log-probabilities: 1 for the model's own distribution, 0 for the likeliest token
    /// every time.
    #[arg(long, default_value_t = 0.8, allow_negative_numbers = true)]
    temperature: f64,
    /// Draw from this many likeliest tokens. Default: all.
    #[arg(long)]
    top_k: Option<usize>,
    /// Draw from the smallest set of tokens whose probability reaches this.
    #[arg(long, default_value_t = 0.95, allow_negative_numbers = true)]
    top_p: f64,
    /// Let the token for unknown words come too.
    #[arg(long)]
    unknown: bool,
    /// Seed of the draws.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Solve every so many tokens once more from zero, to tell what starting from the previous
    /// equilibrium saves; 0 for never.
    #[arg(long, value_name = "TOKENS", default_value_t = 8)]
    compare_every: usize,
}

pub(crate) fn run(args: &GenerateArgs) -> Result<()> {
    let model = &args.model;
    let options = GenerateOptions {
        device: model.device.clone(),
        prompt: args.prompt.clone(),
        tokens: args.tokens,
        sampling: Sampling {
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
        },
        unknown: args.unknown,
        seed: args.seed,
        max_steps: model.max_steps,
        compare_every: args.compare_every,
    };
    if model.json {
        return print::json(&generate(&model.run, &options, &mut |_| {})?);
    }
    let mut out = std::io::stdout();
    // Printed once it is clear that text follows.
    let mut prompt = Some(args.prompt.clone());
    // A closed pipe ends the command by the error of the last write.
    let mut written = Ok(());
    let result = generate(&model.run, &options, &mut |text| {
        if written.is_ok() {
            let prompt = prompt.take().unwrap_or_default();
            written = write!(out, "{prompt}{text}").and_then(|()| out.flush());
        }
    })?;
    written?;
    writeln!(out, "{}", prompt.unwrap_or_default())?;
    eprintln!(
        "\n{} tokens in {:.1} s, {:.1} evaluations of the layer for each",
        result.tokens, result.seconds, result.evaluations
    );
    if let Some([warm, cold]) = result.compared {
        eprintln!(
            "starting from the previous equilibrium saves {:.0} % of the evaluations: {warm:.1} \
             instead of {cold:.1} from zero",
            100.0 * (1.0 - warm / cold)
        );
    }
    Ok(())
}
