//! The memory of a language model as a file, and in parts.

use crate::task::Memory;
use burn::tensor::{Bytes, DType, Device, Tensor, TensorData};
use deq_models::LmMemory;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::ops::Range;

/// A safetensors file whose tensors are named by their place; empty for an empty memory.
impl Memory for LmMemory {
    fn part(&self, rows: Range<usize>, device: &Device) -> Self {
        let part = |tensor: &Tensor<3>| {
            let tensor = tensor.clone().narrow(0, rows.start, rows.len());
            tensor.to_device(device)
        };
        LmMemory::new(self.tensors().iter().map(part).collect())
    }

    fn joined(parts: &[Self], device: &Device) -> Self {
        let tensors = parts.first().map_or(0, |part| part.tensors().len());
        let join = |place: usize| {
            let parts = parts.iter().map(|part| part.tensors()[place].clone());
            Tensor::cat(parts.map(|part| part.to_device(device)).collect(), 0)
        };
        LmMemory::new((0..tensors).map(join).collect())
    }

    fn to_bytes(&self) -> Vec<u8> {
        if self.is_empty() {
            return Vec::new();
        }
        // f32 holds every narrower float exactly.
        let data = |tensor: &Tensor<3>| match tensor.dtype() {
            DType::F64 => tensor.to_data(),
            _ => tensor.to_data().convert::<f32>(),
        };
        let data: Vec<TensorData> = self.tensors().iter().map(data).collect();
        let views = data.iter().map(view).enumerate();
        let views = views.map(|(place, view)| (place.to_string(), view));
        safetensors::serialize(views, None).expect("sizes follow from shapes")
    }

    fn from_bytes(bytes: &[u8], device: &Device) -> Result<Self, String> {
        if bytes.is_empty() {
            return Ok(LmMemory::empty());
        }
        let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
        let tensors = (0..file.len()).map(|place| tensor(&file, place, device));
        let tensors = tensors.collect::<Result<Vec<_>, String>>()?;
        let places = |tensor: &Tensor<3>| [tensor.dims()[0], tensor.dims()[1]];
        let mut pairs = tensors.windows(2);
        match pairs.all(|pair| places(&pair[0]) == places(&pair[1])) {
            true => Ok(LmMemory::new(tensors)),
            false => Err("tensors differ in streams or positions".to_owned()),
        }
    }
}

fn view(data: &TensorData) -> TensorView<'_> {
    let dtype = match data.dtype() {
        DType::F64 => Dtype::F64,
        _ => Dtype::F32,
    };
    let view = TensorView::new(dtype, data.shape().to_vec(), data.as_bytes());
    view.expect("the size follows from the shape")
}

fn tensor(file: &SafeTensors<'_>, place: usize, device: &Device) -> Result<Tensor<3>, String> {
    let name = place.to_string();
    let view = file.tensor(&name).map_err(|error| error.to_string())?;
    let dtype = match view.dtype() {
        Dtype::F32 => DType::F32,
        Dtype::F64 => DType::F64,
        other => return Err(format!("{name} is {other:?}")),
    };
    if view.shape().len() != 3 {
        return Err(format!("{name} has the shape {:?}", view.shape()));
    }
    let bytes = Bytes::from_bytes_vec(view.data().to_vec());
    let data = TensorData::from_bytes(bytes, view.shape().to_vec(), dtype);
    Ok(Tensor::from_data(data, device))
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Distribution;

    fn random(shapes: [[usize; 3]; 2], device: &Device) -> LmMemory {
        let normal = Distribution::Normal(0.0, 1.0);
        let tensors = shapes.map(|shape| Tensor::<3>::random(shape, normal, device));
        LmMemory::new(tensors.to_vec())
    }

    #[test]
    fn the_memory_survives_a_checkpoint() {
        let device = Device::flex();
        let memory = random([[2, 5, 4], [2, 5, 12]], &device);
        let back = LmMemory::from_bytes(&memory.to_bytes(), &device).unwrap();
        assert_eq!(back.tensors().len(), 2);
        for (back, before) in back.tensors().iter().zip(memory.tensors()) {
            assert_eq!(back.to_data(), before.to_data());
        }
        let empty = LmMemory::from_bytes(&[], &device).unwrap();
        assert!(empty.is_empty() && empty.to_bytes().is_empty());
    }

    #[test]
    fn a_memory_is_the_sum_of_its_parts() {
        let device = Device::flex();
        let whole = random([[5, 2, 3], [5, 2, 4]], &device);
        let parts = [0..2, 2..5].map(|rows| Memory::part(&whole, rows, &device));
        assert_eq!(parts[1].tensors()[1].dims(), [3, 2, 4]);
        let joined = LmMemory::joined(&parts, &device);
        assert_eq!(joined.to_bytes(), whole.to_bytes());
        let empty = Memory::part(&LmMemory::empty(), 0..2, &device);
        assert!(LmMemory::joined(&[empty.clone(), empty], &device).is_empty());
    }

    #[test]
    fn bytes_of_anything_else_are_an_error() {
        let device = Device::flex();
        let z = Tensor::<3>::zeros([2, 5, 4], &device);
        let bytes = LmMemory::new(vec![z]).to_bytes();
        assert!(LmMemory::from_bytes(&bytes[..bytes.len() - 1], &device).is_err());
        let file = |shapes: [&[usize]; 2]| {
            let data = shapes.map(|shape| TensorData::zeros::<f32, _>(shape.to_vec()));
            let views = ["0", "1"].into_iter().zip(data.iter().map(view));
            safetensors::serialize(views, None).unwrap()
        };
        let error =
            |second| LmMemory::from_bytes(&file([&[2, 5, 4], second]), &device).unwrap_err();
        assert_eq!(error(&[2, 4, 12]), "tensors differ in streams or positions");
        assert_eq!(error(&[2, 5]), "1 has the shape [2, 5]");
    }
}
