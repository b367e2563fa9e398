// What a person has set for their requests, as fields of a request.
export { isChanged, requestFields, settings } from "../settings/state.js";
