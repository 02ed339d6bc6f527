// transformers.js: the ids of the merged tokenizer, whole and cut, and the embeddings of the merged graph.
import fs from "node:fs";
import { AutoTokenizer, env, pipeline } from "@huggingface/transformers";

const given = JSON.parse(fs.readFileSync(0, "utf-8"));
env.allowRemoteModels = false;
env.localModelPath = "";
const local = { local_files_only: true };

const tokenizer = await AutoTokenizer.from_pretrained(given.merged, local);
const options = { padding: false, return_tensor: false };
const whole = tokenizer(given.strange, { ...options, truncation: false }).input_ids;
const cut = tokenizer(given.strange, { ...options, truncation: true }).input_ids;

const embed = await pipeline("feature-extraction", given.merged_onnx, { ...local, dtype: "fp32", device: "cpu" });
const pooled = { pooling: "mean", normalize: true };
const together = (await embed(given.texts, pooled)).tolist();
const alone = [];
for (const text of given.texts) alone.push(...(await embed([text], pooled)).tolist());
console.log(JSON.stringify({ version: env.version, whole, cut, together, alone }));
