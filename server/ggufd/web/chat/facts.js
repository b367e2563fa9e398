// What an answer took, in one line under it.
export { AnswerFacts } from "../facts/panel.js";
