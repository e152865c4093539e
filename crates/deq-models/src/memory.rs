//! What a training step holds in memory.

/// The numbers that a training step on a batch holds, by what holds them.
///
/// Counted from the code, tensor by tensor: what operations record for the backward pass, and what
/// exists beside it where most does. Tensors of a few numbers per position or channel are left out.
/// How the parts add up depends on the solvers and is not known here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepNumbers {
    /// Trained numbers.
    pub parameters: usize,
    /// Those behind the cell, whose gradients come first.
    pub head: usize,
    /// One state.
    pub state: usize,
    /// What stands throughout: the tape before the cell, normalised weights, masks, memories.
    pub constants: usize,
    /// Weights in the order that a device reads best, for a solve.
    pub arranged: usize,
    /// The same and their transposes, where they stay to the end of the step.
    pub shared: usize,
    /// An evaluation or a product without tape, at its largest, beside a few states.
    pub evaluation: usize,
    /// What one recorded application of the cell keeps.
    pub tape: usize,
    /// The equilibrium and its value, as rows and in parts.
    pub reached: usize,
    /// What products with the transposed Jacobian are made of.
    pub point: usize,
    /// What is recorded behind the cell.
    pub output: usize,
    /// What the layers behind the cell take beside that, at most.
    pub output_peak: usize,
    /// What the layers behind the cell put out, and is kept to the end of the step.
    pub kept: usize,
    /// What the way back through one application takes beside its tape, at most.
    pub backward: usize,
    /// Gradients of parameters and what they are made of, at the end of the backward pass.
    pub weights: usize,
    /// What an application that is recorded with its tangent along one probe keeps.
    pub probe: usize,
}
