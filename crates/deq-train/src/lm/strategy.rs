//! A language model as something that is trained in rounds, and its memory as a file.

use super::evaluate::{EvalPlan, evaluate};
use super::learner::{LmInput, LmLearner, LmStepOutput};
use super::recipe::LmRecipe;
use crate::error::TrainError;
use crate::records::EvalRecord;
use crate::rounds::{Carried, RoundTask};
use burn::data::dataloader::{DataLoader, Progress};
use burn::tensor::{Bytes, DType, Device, Tensor, TensorData};
use deq_jacreg::WeightControllerConfig;
use deq_models::LmMemory;
use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorView};

impl RoundTask for LmRecipe {
    type Memory = LmMemory;
    type In = LmInput;
    type Out = LmStepOutput;
    type Learner = LmLearner;

    fn rounds(&self) -> usize {
        self.rounds
    }

    fn steps_after(&self, round: usize) -> usize {
        self.steps * round / self.rounds
    }

    fn controller(&self) -> Option<&WeightControllerConfig> {
        self.controller.as_ref()
    }

    fn evaluate(
        &self,
        learner: &LmLearner,
        loader: &dyn DataLoader<LmInput>,
        step: usize,
        on_item: &mut dyn FnMut(LmStepOutput, Progress),
    ) -> Result<EvalRecord, TrainError> {
        let plan = EvalPlan {
            split: "valid",
            step,
            probe: true,
            solver: self.deq.solver.clone(),
        };
        evaluate(learner, loader, &plan, on_item)
    }
}

impl Carried for LmMemory {
    fn to_bytes(&self) -> Vec<u8> {
        memory_to_bytes(self)
    }
}

/// The memory as a safetensors file, its tensors named by their place; empty for an empty memory.
fn memory_to_bytes(memory: &LmMemory) -> Vec<u8> {
    if memory.is_empty() {
        return Vec::new();
    }
    // f32 holds every narrower float exactly.
    let data: Vec<TensorData> = memory
        .tensors()
        .iter()
        .map(|tensor| match tensor.dtype() {
            DType::F64 => tensor.to_data(),
            _ => tensor.to_data().convert::<f32>(),
        })
        .collect();
    let views = data
        .iter()
        .enumerate()
        .map(|(place, data)| Ok((place.to_string(), view(data)?)))
        .collect::<Result<Vec<_>, SafeTensorError>>();
    views
        .and_then(|views| safetensors::serialize(views, None))
        .expect("sizes follow from shapes")
}

fn view(data: &TensorData) -> Result<TensorView<'_>, SafeTensorError> {
    let dtype = match data.dtype() {
        DType::F64 => Dtype::F64,
        _ => Dtype::F32,
    };
    TensorView::new(dtype, data.shape().to_vec(), data.as_bytes())
}

/// The inverse of `memory_to_bytes`, on `device`.
pub(crate) fn memory_from_bytes(bytes: &[u8], device: &Device) -> Result<LmMemory, String> {
    if bytes.is_empty() {
        return Ok(LmMemory::empty());
    }
    let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
    let tensor = |place: usize| {
        let name = place.to_string();
        let view = file.tensor(&name).map_err(|error| error.to_string())?;
        let dtype = match view.dtype() {
            Dtype::F32 => DType::F32,
            Dtype::F64 => DType::F64,
            other => return Err(format!("{name} is {other:?}")),
        };
        let bytes = Bytes::from_bytes_vec(view.data().to_vec());
        let data = TensorData::from_bytes(bytes, view.shape().to_vec(), dtype);
        Ok(Tensor::<3>::from_data(data, device))
    };
    let tensors = (0..file.len()).map(tensor).collect::<Result<_, _>>()?;
    Ok(LmMemory::new(tensors))
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Distribution;

    #[test]
    fn the_memory_survives_a_checkpoint() {
        let device = Device::flex();
        let normal = Distribution::Normal(0.0, 1.0);
        let z = Tensor::<3>::random([2, 5, 4], normal, &device);
        let injection = Tensor::<3>::random([2, 5, 12], normal, &device);
        let bytes = memory_to_bytes(&LmMemory::new(vec![z.clone(), injection.clone()]));
        let memory = memory_from_bytes(&bytes, &device).unwrap();
        let [z_back, injection_back] = memory.tensors() else {
            panic!("both tensors come back");
        };
        assert_eq!(z_back.to_data(), z.into_data());
        assert_eq!(injection_back.to_data(), injection.into_data());
        let empty = memory_from_bytes(&[], &device).unwrap();
        assert!(empty.is_empty());
    }
}
